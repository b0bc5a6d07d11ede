"""Backbones, pooling, heads and classifiers: images in, embeddings or logits out."""
