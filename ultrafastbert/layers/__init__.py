"""Layers: trees of neurons (`FFF`), trees whose leaves are networks (`SoftFFF`, `HardFFF`), and their baselines."""
