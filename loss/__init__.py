"""The losses, and their weighted sum."""
