"""Conversion between checkpoints of other code and models of this package."""
