"""Layers as modules: fast feedforward trees, soft trees, and the layers that they are compared with."""
