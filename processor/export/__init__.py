"""A trained model outside of training: its folder, the files that it is exported to, and their proof."""
