"""What every run needs, whatever it trains: its directory, checkpoints, resumable results, progress, signals."""
