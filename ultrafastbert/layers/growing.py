"""Grows the trees that have leaves (`HardFFF`) in any model: their decisions are made from the inputs they receive."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ultrafastbert.layers.hard import HardFFF
from ultrafastbert.layers.usage import observe_inputs
from ultrafastbert.utils.validation import POSITIVE, check

TOKENS_PER_LEAF = 64
"""In the sample that decisions are made from."""


@torch.no_grad()
def grow_trees(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[Any], Any] | None = None,
    optimizers: Sequence[Optimizer] = (),
    tokens_per_leaf: float = TOKENS_PER_LEAF,
) -> list[str]:
    """Splits each `HardFFF` of a model that has no decisions yet; the output of the model does not change.

    All leaves of a layer start as copies of its first one, so train the model for a while before. Batches run through
    the model, in evaluation mode, until the layer has received enough tokens. Then they start again for the next
    layer, because the inputs of one layer at a time fit into memory. Padding counts as tokens: use batches that have
    little. In distributed training all processes get the decisions of the first one.

    Args:
        model: any module.
        batches: can be iterated over repeatedly, such as a list or a `DataLoader`.
        forward: runs the model on a batch, such as `lambda batch: model(**batch)`; None: `model(batch)`.
        optimizers: of the model; what they hold for the leaves is copied from the first leaf too.
        tokens_per_leaf: tokens of the sample for each leaf.

    Returns:
        The names of the layers that were split.

    Raises:
        ValueError: `batches` can be iterated over once only; a layer received too few tokens. Layers before it, in
            the order of the model's modules, are split by then, and another call resumes with the others.
    """
    check("tokens_per_leaf", tokens_per_leaf, POSITIVE)
    if isinstance(batches, Iterator):
        raise ValueError(
            f"batches is a {type(batches).__name__}, which ends with the first layer; it should be a list, a"
            " DataLoader or another object that starts again"
        )
    trees = {name: module for name, module in model.named_modules() if isinstance(module, HardFFF) and module.depth}
    trees = {name: tree for name, tree in trees.items() if not tree.is_split}
    with _evaluating(model), torch.compiler.set_stance("force_eager"):
        for name, tree in trees.items():
            tree.split_by_variance(_inputs(name, tree, batches, forward or model, tokens_per_leaf))
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                for node in (tree.node_weight_in, tree.node_bias_in):
                    torch.distributed.broadcast(node, src=0)
            for optimizer in optimizers:
                _copy_first_leaf(optimizer, tree)
    return list(trees)


def _inputs(
    name: str, tree: HardFFF, batches: Iterable[Any], forward: Callable[[Any], Any], tokens_per_leaf: float
) -> Tensor:
    """The first inputs of a layer, `(tokens, hidden_size)`, at least `tokens_per_leaf` for each leaf."""
    needed = tokens_per_leaf * 2**tree.depth
    inputs: list[Tensor] = []
    with observe_inputs([tree], lambda _, x: inputs.append(x.detach().reshape(-1, tree.input_size))):
        for batch in batches:
            forward(batch)
            if sum(map(len, inputs)) >= needed:
                return torch.cat(inputs)
    raise ValueError(
        f"batches gave {name} {sum(map(len, inputs)):,} tokens; its {2**tree.depth:,} leaves need {needed:,.0f}. Give"
        " more batches, or lower tokens_per_leaf"
    )


def _copy_first_leaf(optimizer: Optimizer, tree: HardFFF) -> None:
    """Copies an optimiser's averages for the first leaf to all leaves, which are copies of the first."""
    for name, parameter in tree.named_parameters():
        if name.startswith("leaf_"):
            for average in optimizer.state.get(parameter, {}).values():
                if isinstance(average, Tensor) and average.shape == parameter.shape:
                    average[1:] = average[:1].clone()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode; afterwards each module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
