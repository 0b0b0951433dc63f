"""Fine-tuning and evaluation on GLUE and on your own data."""
