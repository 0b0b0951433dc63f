"""The layers that are compared, described by their sizes."""

from dataclasses import dataclass
from typing import Literal

from ultrafastbert.layers.baselines import FeedForward, MixtureOfExperts
from ultrafastbert.layers.blocks import BlockLayer
from ultrafastbert.layers.soft import SoftFFF

TITLES = {"ff": "feedforward", "moe": "mixture of experts", "fff": "tree"}
"""The kinds of layers, and their names in tables and figures."""


@dataclass(frozen=True)
class Candidate:
    """A plain feedforward layer (`ff`), a mixture of experts (`moe`) or a tree (`fff`).

    Attributes:
        kind: a key of `TITLES`.
        width: the training width: neurons of all blocks, without those of nodes and gates.
        block: neurons of a block: of a leaf or an expert, or of the whole plain layer.
        hardening: weight of the tree's hardening loss; infinite for a tree whose decisions are frozen.
        k: experts that an input uses.
    """

    kind: Literal["ff", "moe", "fff"]
    width: int
    block: int
    hardening: float = 0.0
    k: int = 2

    @property
    def blocks(self) -> int:
        """The number of leaves or experts; 1 for a plain layer."""
        return self.width // self.block

    @property
    def depth(self) -> int:
        """The depth of the tree; 0 for the other kinds."""
        return self.blocks.bit_length() - 1 if self.kind == "fff" else 0

    @property
    def name(self) -> str:
        """A name for files, unique within an experiment."""
        details = {"ff": "", "moe": f"-e{self.block}", "fff": f"-l{self.block}-h{self.hardening:g}"}
        return f"{self.kind}-w{self.width}{details[self.kind]}"

    def build(self, input_size: int, output_size: int) -> BlockLayer:
        """The layer with new random weights: `(..., input_size)` -> `(..., output_size)`."""
        if self.kind == "ff":
            return FeedForward(input_size, self.width, output_size)
        if self.kind == "moe":
            return MixtureOfExperts(input_size, self.block, output_size, self.blocks, k=self.k)
        return SoftFFF(input_size, self.block, output_size, self.depth, hardening=self.hardening)
