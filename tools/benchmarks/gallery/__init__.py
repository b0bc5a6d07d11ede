"""Benchmarks of the gallery."""
