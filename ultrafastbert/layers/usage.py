"""How evenly the tokens of a model spread over the leaves of its trees.

A tree that sends all tokens to a few leaves has collapsed: most of its neurons are no longer used.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import nn

from ultrafastbert.layers.fff import FFF
from ultrafastbert.layers.soft import SoftFFF


def tree_layers(model: nn.Module) -> list[FFF | SoftFFF]:
    """The layers of trees with decisions (depth at least 1), from the first to the last."""
    return [module for module in model.modules() if isinstance(module, FFF | SoftFFF) and module.depth > 0]


def leaves(layer: FFF | SoftFFF, x: torch.Tensor) -> torch.Tensor:
    """The leaf of each input in each tree: `(..., input)` -> int64 `(..., trees)`, from 0 to 2^depth - 1."""
    return layer.route(x)[..., -1] - (2**layer.depth - 1)


@contextmanager
def observe_inputs(layers: list[FFF | SoftFFF], observe: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """Within the context, calls `observe(index, input)` before each forward pass of each layer."""
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, index=index: observe(index, inputs[0]))
        for index, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class LeafCounter:
    """Within its context, counts the tokens at each leaf of each layer of trees.

    Attributes:
        layers: the layers of trees, from `tree_layers`.
        counts: a tensor per layer, int64 `(trees, leaves)`.
    """

    def __init__(self, model: nn.Module):
        self.layers = tree_layers(model)
        device = next(model.parameters()).device
        self.counts = [
            torch.zeros(layer.trees, 2**layer.depth, dtype=torch.long, device=device) for layer in self.layers
        ]

    def __enter__(self) -> Self:
        self._observing = observe_inputs(self.layers, self._observe)
        self._observing.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self._observing.__exit__(*exception)

    def _observe(self, index: int, x: torch.Tensor) -> None:
        self._count(index, leaves(self.layers[index], x).flatten(0, -2))

    def _count(self, index: int, leaf: torch.Tensor) -> None:
        self.counts[index].scatter_add_(1, leaf.T, torch.ones_like(leaf.T))

    def usage(self) -> tuple[list[float], list[float]]:
        """Per layer, averaged over its trees: the fraction of leaves used and the relative entropy of their use."""
        pairs = [evenness(counts) for counts in self.counts]
        return [used for used, _ in pairs], [entropy for _, entropy in pairs]


def evenness(counts: torch.Tensor) -> tuple[float, float]:
    """How evenly tokens are spread, averaged over trees.

    Args:
        counts: `(trees, places)`, tokens at each place.

    Returns:
        The fraction of places with at least one token, and the entropy of the distribution relative to that of a
        uniform one (0: all tokens at one place, 1: uniform).
    """
    fraction = counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    entropy = torch.special.entr(fraction).sum(dim=1).mean().item() / math.log(counts.shape[1])
    return (counts > 0).double().mean().item(), entropy
