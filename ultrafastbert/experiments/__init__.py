"""The comparisons of arXiv 2308.14711: trees of feedforward layers beside plain layers and mixtures of experts."""
