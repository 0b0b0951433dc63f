"""Checkpoints of other code, converted to this package's models and back."""
