"""Counts how many tokens go to each leaf of a model's trees, and measures how even the counts are.

A tree that sends all tokens to a few leaves has collapsed: most of its neurons are no longer used.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from ultrafastbert.layers.fff import FFF
from ultrafastbert.layers.soft import SoftFFF


def tree_layers(model: nn.Module) -> list[FFF | SoftFFF]:
    """Returns the layers of trees with decisions (depth at least 1), from first to last."""
    return [module for module in model.modules() if isinstance(module, FFF | SoftFFF) and module.depth > 0]


def leaves(layer: FFF | SoftFFF, x: Tensor) -> Tensor:
    """Returns the leaf of each input in each tree: `(..., input)` -> int64 `(..., trees)`, from 0 to 2^depth - 1."""
    return layer.route(x)[..., -1] - (2**layer.depth - 1)


@contextmanager
def observe_inputs(layers: list[FFF | SoftFFF], observe: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Within the context, calls `observe(index, input)` before each forward pass of each layer."""

    def hook(index: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        observe(index, inputs[0])

    handles = [layer.register_forward_pre_hook(partial(hook, index)) for index, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class LeafCounter:
    """Counts the tokens at each leaf of the `tree_layers` of a model, within its context.

    Attributes:
        counts: one tensor per layer, int64 `(trees, leaves)`.
    """

    def __init__(self, model: nn.Module):
        self.layers = tree_layers(model)
        device = next(model.parameters()).device
        sizes = [(layer.trees, 2**layer.depth) for layer in self.layers]
        self.counts = [torch.zeros(size, dtype=torch.long, device=device) for size in sizes]

    def __enter__(self) -> Self:
        self._observing = observe_inputs(self.layers, self._observe)
        self._observing.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._observing.__exit__(*exception)

    def _observe(self, index: int, x: Tensor) -> None:
        self._count(index, leaves(self.layers[index], x).flatten(0, -2))

    def _count(self, index: int, leaf: Tensor) -> None:
        self.counts[index].scatter_add_(1, leaf.T, torch.ones_like(leaf.T))

    def usage(self) -> tuple[list[float], list[float]]:
        """Returns `evenness` per layer: the fractions of leaves used and the relative entropies."""
        pairs = [evenness(counts) for counts in self.counts]
        return [used for used, _ in pairs], [entropy for _, entropy in pairs]


def evenness(counts: Tensor) -> tuple[float, float]:
    """Measures how evenly tokens are distributed over leaves (or the nodes of a level), averaged over trees.

    From `(trees, leaves)` numbers of tokens it computes the fraction of leaves with at least one token, and the
    entropy of the distribution relative to the uniform one (0: all tokens at one leaf, 1: uniform).
    """
    fraction = counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    entropy = torch.special.entr(fraction).sum(dim=1).mean().item() / math.log(counts.shape[1])
    return (counts > 0).double().mean().item(), entropy
