"""Generic helpers; imports nothing else of this project."""
