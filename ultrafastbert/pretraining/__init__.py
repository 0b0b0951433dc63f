"""Masked-language-model pretraining: the training loop, its parts, and the data."""
