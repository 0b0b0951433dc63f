"""Fast inference on a CPU: `optimize_for_inference` and the operators that it uses."""
