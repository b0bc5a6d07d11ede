"""Where the pictures of a set are, and who is on them."""
