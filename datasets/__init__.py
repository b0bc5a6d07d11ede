"""Data sets: finding, reading, augmenting and batching pictures."""
