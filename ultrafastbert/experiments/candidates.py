"""The three layers that are compared, described by their sizes."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from ultrafastbert.layers.baselines import FeedForward, MixtureOfExperts
from ultrafastbert.layers.soft import SoftFFF

TITLES = {"ff": "feedforward", "moe": "mixture of experts", "fff": "tree"}


@dataclass(frozen=True)
class Layer:
    """A feedforward layer (`ff`), a mixture of experts (`moe`) or a tree (`fff`) of a training width.

    Args:
        width: neurons that take part in training, without those of nodes and gates.
        block: neurons of an expert or a leaf; `width` for a plain layer.
        hardening: weight of the tree's hardening loss; infinite for a frozen tree.
        k: experts that are mixed.
    """

    kind: Literal["ff", "moe", "fff"]
    width: int
    block: int
    hardening: float = 0.0
    k: int = 2

    @property
    def blocks(self) -> int:
        return self.width // self.block

    @property
    def depth(self) -> int:
        """Of the tree; 0 for the others."""
        return self.blocks.bit_length() - 1 if self.kind == "fff" else 0

    @property
    def name(self) -> str:
        """Also the name of a run's file, so it tells all that differs within an experiment."""
        if self.kind == "ff":
            return f"ff-w{self.width}"
        if self.kind == "moe":
            return f"moe-w{self.width}-e{self.block}"
        return f"fff-w{self.width}-l{self.block}-h{self.hardening:g}"

    def build(self, input_size: int, output_size: int) -> nn.Module:
        """The layer with fresh weights: `(..., input_size)` -> `(..., output_size)`."""
        if self.kind == "ff":
            return FeedForward(input_size, self.width, output_size)
        if self.kind == "moe":
            return MixtureOfExperts(input_size, self.block, output_size, self.blocks, k=self.k)
        return SoftFFF(input_size, self.block, output_size, self.depth, hardening=self.hardening)
