"""Time of a forward pass against the number of blocks: leaves of a tree or experts of a mixture.

A tree evaluates one node per level to find its leaf, a mixture all of its gates to find its expert, and a plain layer
all of its neurons. Tree and mixture have blocks of the same size and use one of them, so they differ only in how they
find it. (A mixture with k = 1 could not be trained.) Weights are random, so inputs spread over the blocks.

Source: arXiv 2308.14711, "Inference speed comparison".
"""

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ultrafastbert.experiments.arguments import TimingArguments
from ultrafastbert.experiments.candidates import Candidate
from ultrafastbert.utils.timing import take_turns


@dataclass(frozen=True)
class LayerTiming:
    """The timing of the layers with one number of blocks and one batch size."""

    arguments: TimingArguments
    batch_size: int
    blocks: int

    @property
    def threads(self) -> int:
        """Threads of PyTorch while the layers are timed."""
        return self.arguments.threads

    @property
    def file(self) -> str:
        """The path of the result in the directory of the experiment's results."""
        return f"batch-{self.batch_size}-blocks-{self.blocks}.json"

    def settings(self, images: object, device: str) -> dict:
        """Everything that the result depends on, as JSON types; no images."""
        names = ("block_size", "hidden_size", "feedforward_blocks", "threads", "seconds")
        settings = {name: getattr(self.arguments, name) for name in names}
        return settings | {"batch_size": self.batch_size, "blocks": self.blocks, "device": device}

    def measure(self, images: object, device: str, check: Callable[[], None]) -> dict:
        """Times the layers.

        Returns:
            `batch_size`, `blocks`, and `times`: for each kind of layer `mean`, `median` and standard `deviation` of
            single calls in milliseconds, and the number of `calls`.
        """
        layers = self.build(device)
        x = torch.randn(self.batch_size, self.arguments.hidden_size, device=device)
        calls: dict[str, Callable[[], object]] = {kind: partial(_infer, layer, x) for kind, layer in layers.items()}
        times = take_turns(calls, self.arguments.seconds, device=device)
        summaries = {kind: _summarize(values) for kind, values in times.items()}
        return {"batch_size": self.batch_size, "blocks": self.blocks, "times": summaries}

    def build(self, device: str) -> dict[str, nn.Module]:
        """The layers by kind, with random weights, in evaluation mode; no plain layer where it would be too wide."""
        torch.manual_seed(0)
        size, hidden_size = self.arguments.block_size, self.arguments.hidden_size
        width = self.blocks * size
        candidates = [Candidate("moe", width, size, k=1), Candidate("fff", width, size)]
        if self.blocks <= self.arguments.feedforward_blocks:
            candidates.append(Candidate("ff", width, width))
        with torch.device(device):
            layers: dict[str, nn.Module] = {c.kind: c.build(hidden_size, hidden_size).eval() for c in candidates}
            nn.init.normal_(layers["moe"].get_parameter("gate_weight"))  # initially 0: all inputs use one expert
        return layers


def plan_timing(section: TimingArguments) -> list[LayerTiming]:
    """The timings of each batch size and number of blocks."""
    pairs = itertools.product(section.batch_sizes, section.blocks)
    return [LayerTiming(section, batch_size, blocks) for batch_size, blocks in pairs]


def _infer(layer: nn.Module, x: torch.Tensor) -> None:
    with torch.inference_mode():
        layer(x)


def _summarize(seconds: list[float]) -> dict[str, float]:
    milliseconds = [1e3 * value for value in seconds]
    return {
        "mean": statistics.mean(milliseconds),
        "median": statistics.median(milliseconds),
        "deviation": statistics.pstdev(milliseconds),
        "calls": len(milliseconds),
    }
