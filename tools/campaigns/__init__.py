"""Machines that look for faults: each kind is a file, `tools/campaign.py` has the table of them."""
