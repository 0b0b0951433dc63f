"""The experiments of arXiv 2308.14711: trees compared with plain feedforward layers and mixtures of experts."""
