"""What all runs share: directory, checkpoints, resumable results, settings, metrics and progress, signals."""
