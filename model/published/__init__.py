"""Weights that others published: whose file it is, and what each of its keys is here."""
from model.published.convert import Published, convert, recognise
from model.published.layouts import LAYOUTS, Layout

__all__ = ["LAYOUTS", "Layout", "Published", "convert", "recognise"]
