"""Sizes of feedforward layers as people write them.

`1x11` is one tree of depth 11, `1x7x32` one of depth 7 whose leaves have 32 neurons each, `dense-3072` an ordinary
layer, `none` no layer.
"""

import re
from typing import NamedTuple

MAX_DEPTH = 30
"""Of a tree, which then has 2^31 - 1 neurons."""


class TreeSize(NamedTuple):
    """Trees of a layer: `TREESxDEPTH`, or `1xDEPTHxLEAF` for a tree with leaves of several neurons.

    Attributes:
        trees: evaluated in parallel, their outputs added.
        depth: levels below the root.
        leaf_size: neurons of a leaf, above which nodes only decide; None: every node of a path is a neuron.
    """

    trees: int
    depth: int
    leaf_size: int | None = None

    @property
    def nodes(self) -> int:
        """Neurons of a tree: those that decide, and those of its leaves."""
        return 2**self.depth - 1 + 2**self.depth * (self.leaf_size or 1)

    @property
    def neurons(self) -> int:
        """Neurons of the layer."""
        return self.trees * self.nodes

    @property
    def used(self) -> int:
        """Neurons that a token uses."""
        return self.trees * (self.depth + (self.leaf_size or 1))

    def __str__(self) -> str:
        return f"{self.trees}x{self.depth}" + (f"x{self.leaf_size}" if self.leaf_size else "")

    @classmethod
    def parse(cls, text: str, name: str = "size") -> "TreeSize":
        """Reads `TREESxDEPTH` or `1xDEPTHxLEAF`.

        Raises:
            ValueError: another text, or a depth above `MAX_DEPTH`; the message names `name`.
        """
        match = re.fullmatch(r"([1-9]\d*)x(\d+)|1x(\d+)x([1-9]\d*)", text)
        if match is None or int(match[2] or match[3]) > MAX_DEPTH:
            raise ValueError(
                f"{name} is {text!r}; it should be TREESxDEPTH, as in 1x11, or 1xDEPTHxLEAF, as in 1x7x32, depth at"
                f" most {MAX_DEPTH}"
            )
        return cls(1, int(match[3]), int(match[4])) if match[4] else cls(int(match[1]), int(match[2]))


class DenseSize(NamedTuple):
    """An ordinary feedforward layer, of which a token uses all neurons: `dense-NEURONS`."""

    neurons: int

    @property
    def used(self) -> int:
        """Neurons that a token uses."""
        return self.neurons

    def __str__(self) -> str:
        return f"dense-{self.neurons}"


class NoSize(NamedTuple):
    """No feedforward layer: `none`; it has no neurons."""

    neurons: int = 0
    used: int = 0

    def __str__(self) -> str:
        return "none"


Size = TreeSize | DenseSize | NoSize


def parse_size(text: str, name: str = "size") -> Size:
    """Reads `TREESxDEPTH`, `1xDEPTHxLEAF`, `dense-NEURONS` or `none`.

    Raises:
        ValueError: another text; the message names `name`.
    """
    if match := re.fullmatch(r"dense-([1-9]\d*)", text):
        return DenseSize(int(match[1]))
    if "x" in text:
        return TreeSize.parse(text, name)
    if text == "none":
        return NoSize()
    raise ValueError(
        f"{name} is {text!r}; it should be TREESxDEPTH, as in 1x11, 1xDEPTHxLEAF, as in 1x7x32, dense-NEURONS, as in"
        " dense-3072, or none"
    )
