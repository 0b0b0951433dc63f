"""Measurements of speed: one harness, and a module for the contenders and shapes of each benchmark."""
