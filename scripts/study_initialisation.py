"""How the initialisation of trees bears on the loss and on the use of their leaves, after short pretraining runs."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from ultrafastbert.cli import run_command
from ultrafastbert.layers.fff import FFF
from ultrafastbert.pretraining.arguments import ModelArguments, PretrainArguments, TrainArguments
from ultrafastbert.pretraining.data.arguments import DataArguments
from ultrafastbert.pretraining.trainer import pretrain
from ultrafastbert.runs.reporter import read_metrics

# name: standard deviations of the input weights and the output weights, from width and neurons a token uses
NORMAL = {
    "in 0.02, out 0.02 (the original models)": lambda width, used: (0.02, 0.02),
    "in 1/sqrt(width), out 0.02 (ours)": lambda width, used: (1 / math.sqrt(width), 0.02),
    "in 2/sqrt(width), out 0.02": lambda width, used: (2 / math.sqrt(width), 0.02),
    "in 1/sqrt(width), out 1/sqrt(3 used)": lambda width, used: (1 / math.sqrt(width), 1 / math.sqrt(3 * used)),
    "in 1/sqrt(3 width), out 1/sqrt(3 used) (the original layer)": lambda width, used: (
        1 / math.sqrt(3 * width),
        1 / math.sqrt(3 * used),
    ),
}


@dataclass
class StudyArguments:
    """The runs: all the same but for the trees' first weights."""

    data: DataArguments = field(default_factory=DataArguments)
    """Data"""
    model: ModelArguments = field(default_factory=ModelArguments)
    """Model"""
    train: TrainArguments = field(default_factory=TrainArguments)
    """Training"""
    seeds: int = 1
    """Runs of each initialisation. [runs]"""
    output_dir: str = "out/initialisation"
    """Directory of the runs; those that are finished are not made again."""


def main(arguments: StudyArguments) -> None:
    rows = []
    for number, (name, deviations) in enumerate(NORMAL.items()):

        def reset_parameters(layer, deviations=deviations):
            used = layer.trees * (layer.depth + 1)
            std_in, std_out = deviations(layer.hidden_size, used)
            nn.init.normal_(layer.weight_in, std=std_in)
            nn.init.zeros_(layer.bias_in)
            nn.init.normal_(layer.weight_out, std=std_out)

        FFF.reset_parameters = reset_parameters
        for seed in range(arguments.seeds):
            output = Path(arguments.output_dir) / f"{number}-{seed}"
            pretrain(PretrainArguments(arguments.model, arguments.data, arguments.train, str(output), seed))
            last = [line for line in read_metrics(output / "metrics.jsonl") if "validation_loss" in line][-1]
            used, entropy = last["leaves_used"], last["leaf_entropy"]
            rows.append(
                f"| {name} | {seed} | {last['validation_loss']:.3f} | {last['validation_accuracy']:.1%}"
                f" | {min(used):.0%} to {max(used):.0%} | {min(entropy):.2f} to {max(entropy):.2f} |"
            )
    print(
        "| normal, with standard deviation | seed | loss | accuracy | leaves used, by layer | entropy of their use |"
    )
    print("| --- | --- | --- | --- | --- | --- |", *rows, sep="\n")


if __name__ == "__main__":
    run_command(main, StudyArguments, "Pretrains with several initialisations of the trees and prints a table.")
