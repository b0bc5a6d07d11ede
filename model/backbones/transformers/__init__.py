"""Vision transformers: backbones that look at patches and have a class token, and their tables."""
