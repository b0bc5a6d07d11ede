"""The embedded demo set: rendered pedestrians in NAIC's layout."""
