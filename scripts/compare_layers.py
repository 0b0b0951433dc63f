"""Compares trees of small feedforward layers with plain layers and mixtures of experts, as arXiv 2308.14711 does."""

from ultrafastbert.cli import run_command
from ultrafastbert.comparison.arguments import CompareArguments
from ultrafastbert.comparison.compare import compare

if __name__ == "__main__":
    run_command(compare, CompareArguments, "Compares trees with plain layers and mixtures of experts.")
