"""Compares initialisations of trees: the loss and the use of their leaves after short pretraining runs."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from ultrafastbert.cli import parse_arguments
from ultrafastbert.layers.fff import FFF
from ultrafastbert.pretraining.arguments import ModelArguments, PretrainArguments, TrainArguments
from ultrafastbert.pretraining.data.arguments import DataArguments
from ultrafastbert.pretraining.trainer import pretrain
from ultrafastbert.runs.directory import METRICS
from ultrafastbert.runs.reporter import read_metrics
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.tables import markdown_table
from ultrafastbert.utils.validation import POSITIVE, check

INITIALISATIONS: dict[str, Callable[[int, int], tuple[float, float]]] = {
    "in 0.02, out 0.02 (the original models)": lambda width, used: (0.02, 0.02),
    "in 1/sqrt(width), out 0.02 (ours)": lambda width, used: (1 / math.sqrt(width), 0.02),
    "in 2/sqrt(width), out 0.02": lambda width, used: (2 / math.sqrt(width), 0.02),
    "in 1/sqrt(width), out 1/sqrt(3 used)": lambda width, used: (1 / math.sqrt(width), 1 / math.sqrt(3 * used)),
    "in 1/sqrt(3 width), out 1/sqrt(3 used) (the original layer)": lambda width, used: (
        1 / math.sqrt(3 * width),
        1 / math.sqrt(3 * used),
    ),
}
"""Standard deviations of the input and the output weights, from the width and the neurons that a token uses."""


@dataclass
class StudyArguments:
    """The runs, which differ only in the initialisation of the trees."""

    data: DataArguments = field(default_factory=DataArguments)
    """Data"""
    model: ModelArguments = field(default_factory=ModelArguments)
    """Model"""
    train: TrainArguments = field(default_factory=TrainArguments)
    """Training"""
    seeds: int = 1
    """Runs of each initialisation. [runs]"""
    output_dir: str = "out/initialisation"
    """Directory of the runs; finished runs are not repeated."""

    def __post_init__(self):
        check("seeds", self.seeds, POSITIVE)


def main(arguments: StudyArguments) -> None:
    """Pretrains with each initialisation and prints a table."""
    rows = []
    for number, (name, deviations) in enumerate(INITIALISATIONS.items()):

        def reset_parameters(layer: FFF, deviations: Callable = deviations) -> None:
            std_in, std_out = deviations(layer.hidden_size, layer.trees * (layer.depth + 1))
            nn.init.normal_(layer.weight_in, std=std_in)
            if layer.bias_in is not None:
                nn.init.zeros_(layer.bias_in)
            nn.init.normal_(layer.weight_out, std=std_out)

        FFF.reset_parameters = reset_parameters  # pyright: ignore[reportAttributeAccessIssue]
        for seed in range(arguments.seeds):
            output = Path(arguments.output_dir) / f"{number}-{seed}"
            pretrain(PretrainArguments(arguments.model, arguments.data, arguments.train, str(output), seed))
            last = [line for line in read_metrics(output / METRICS) if "validation_loss" in line][-1]
            used, entropy = last["leaves_used"], last["leaf_entropy"]
            rows.append(
                (
                    name,
                    seed,
                    f"{last['validation_loss']:.3f}",
                    f"{last['validation_accuracy']:.1%}",
                    f"{min(used):.0%} to {max(used):.0%}",
                    f"{min(entropy):.2f} to {max(entropy):.2f}",
                )
            )
    header = ("normal, with standard deviation", "seed", "loss", "accuracy", "leaves used, by layer")
    print(markdown_table((*header, "entropy of their use"), rows))


if __name__ == "__main__":
    try:
        main(
            parse_arguments(
                StudyArguments, sys.argv[1:], "study_initialisation.py", "Compares initialisations of trees."
            )
        )
    except UserError as error:
        sys.exit(f"error: {error}")
