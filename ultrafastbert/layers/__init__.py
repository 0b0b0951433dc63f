"""Layers: fast feedforward trees (`FFF`), soft trees (`SoftFFF`), and the baselines that they are compared with."""
