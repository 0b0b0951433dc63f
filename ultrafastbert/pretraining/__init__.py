"""Masked-language-model pretraining: arguments, trainer, schedule, evaluation and data."""
