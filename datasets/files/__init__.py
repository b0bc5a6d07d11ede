"""From a key to pixels: image files and packs of them."""
