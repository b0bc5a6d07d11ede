"""How fast and in what memory: each implementation measured in a process of its own, the figures in one table."""
