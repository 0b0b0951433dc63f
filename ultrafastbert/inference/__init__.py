"""`optimize_for_inference`: an encoder made fast on the CPU in one call."""

from ultrafastbert.inference.optimize import optimize_for_inference

__all__ = ["optimize_for_inference"]
