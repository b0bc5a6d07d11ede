"""The doctor's visit: what a data set is and what is wrong with it, as text, JSON and a page with pictures."""
