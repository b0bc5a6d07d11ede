"""Many pictures at a time: lists of them, boxes of tracks, and a file of their rows that outlives a kill."""
