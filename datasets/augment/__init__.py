"""Augmentation of a batch on its device, each image by its own draw."""
