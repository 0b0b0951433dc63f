"""The regions of the input space that belong to the leaves of a tree, as data, and edits of single leaves.

The decisions of a tree divide the input space into 2^depth convex regions, one for each leaf. Notable:
- A leaf computes outputs only for its own region, so an edit of a leaf changes no output outside of it.
  `LeafEdit.effect` measures that for a layer. In an encoder other tokens see the change through attention;
  `LeafEdit.effect_in_model` measures how far it reaches.
- An edit is undone at the end of its `with` block, also after an exception, unless it is kept.
- Regions follow `layer.route`, for `FFF` and `SoftFFF` alike, and therefore describe inference.

Regions and edits of single leaves as a way to interpret and repair a network: Belcak & Wattenhofer, "Fast Feedforward
Networks", arXiv 2308.14711.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from ultrafastbert.layers.fff import FFF
from ultrafastbert.layers.soft import SoftFFF
from ultrafastbert.layers.usage import leaves, observe_inputs
from ultrafastbert.utils.validation import between, check


def in_region(layer: FFF | SoftFFF, x: torch.Tensor, leaf: int, tree: int = 0) -> torch.Tensor:
    """Which inputs are in the region of a leaf, so that `x[in_region(layer, x, 3)]` are those of leaf 3.

    Args:
        layer: of trees.
        x: `(..., input)`.
        leaf: from 0 to 2^depth - 1.
        tree: of a layer with several.

    Returns:
        bool `(...)`.

    Raises:
        ValueError: the layer has no such leaf or tree.
    """
    _check_leaf(layer, leaf, tree)
    return leaves(layer, x)[..., tree] == leaf


def decisions(layer: FFF | SoftFFF) -> tuple[torch.Tensor, torch.Tensor]:
    """The hyperplanes of the decisions. An input goes to the right where `weight @ x + bias` is greater than 0.

    Returns:
        `weight` `(trees, nodes, input)` and `bias` `(trees, nodes)`, of the nodes in heap order without the leaves.

    Raises:
        ValueError: nodes of several neurons, whose decisions are not hyperplanes.
    """
    if isinstance(layer, SoftFFF):
        if (size := layer.node_size) > 1:
            raise ValueError(f"layer has node_size {size}; only nodes of a single neuron decide at hyperplanes")
        return layer.node_weight_in.detach().transpose(0, 1), layer.node_bias_in.detach().transpose(0, 1)
    inner = 2**layer.depth - 1
    weight = layer.weight_in.detach()[:, :inner]
    bias = torch.zeros_like(weight[..., 0]) if layer.bias_in is None else layer.bias_in.detach()[:, :inner]
    return weight, bias


def decision_logits(layer: FFF | SoftFFF, x: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    """The logits of the decisions on paths. Greater than 0 is right; a sigmoid makes them probabilities.

    Args:
        layer: of trees.
        x: `(inputs, input)`.
        path: `(inputs, trees, depth + 1)`, from `layer.route`.

    Returns:
        `(inputs, trees, depth)`, in float32 or, if the inputs are, float64.
    """
    if isinstance(layer, SoftFFF):
        return layer.node_logits(x).gather(1, path[:, 0, :-1]).unsqueeze(1)
    weight, bias = decisions(layer)
    tree = torch.arange(layer.trees, device=x.device)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    logits = x.new_empty(*path.shape[:2], layer.depth)
    for level in range(layer.depth):
        node = path[..., level]  # (inputs, trees)
        logits[..., level] = torch.einsum("nti,ni->nt", weight[tree, node].to(x.dtype), x) + bias[tree, node]
    return logits


@dataclass
class HalfSpaces:
    """The half-spaces whose intersection is a region: one for each decision on the path to a leaf, root first.

    Attributes:
        node: int64 `(depth,)`, heap indices.
        weight: `(depth, input)`.
        bias: `(depth,)`.
        right: bool `(depth,)`; the region is where `weight @ x + bias` is greater than 0 if True, elsewhere if False.
    """

    node: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    right: torch.Tensor

    def contains(self, x: torch.Tensor) -> torch.Tensor:
        """Which inputs are inside, `(..., input)` -> bool `(...)`; on a boundary, up to rounding."""
        return ((x @ self.weight.T + self.bias > 0) == self.right).all(-1)


def half_spaces(layer: FFF | SoftFFF, leaf: int, tree: int = 0) -> HalfSpaces:
    """The half-spaces that bound the region of a leaf.

    Raises:
        ValueError: the layer has no such leaf or tree, or has nodes of several neurons.
    """
    _check_leaf(layer, leaf, tree)
    weight, bias = decisions(layer)
    path = [2**layer.depth - 1 + leaf]
    while path[0]:
        path.insert(0, (path[0] - 1) // 2)
    child = torch.tensor(path[1:], dtype=torch.long, device=weight.device)
    node = (child - 1) // 2
    return HalfSpaces(node, weight[tree, node], bias[tree, node], right=child % 2 == 0)


@dataclass
class Change:
    """How much the outputs of a group of inputs changed.

    Attributes:
        inputs: number of inputs.
        changed: number of inputs with an output that is not bit-identical.
        largest: the largest absolute change, 0 without inputs.
        mean: the mean over inputs of the largest absolute change of their outputs, 0 without inputs.
    """

    inputs: int
    changed: int
    largest: float
    mean: float


class LeafEdit:
    """An edit of one leaf's parameters in place, undone at the end of its `with` block.

        with LeafEdit(layer, leaf=3) as edit:
            edit.parameters["weight_out"].zero_()
            print(edit.effect(x))
            edit.keep()  # without this, the edit is undone

    Args:
        layer: of the leaf.
        leaf: from 0 to 2^depth - 1.
        tree: of a layer with several.

    Raises:
        ValueError: the layer has no such leaf or tree.
    """

    def __init__(self, layer: FFF | SoftFFF, leaf: int, tree: int = 0):
        _check_leaf(layer, leaf, tree)
        self.layer, self.leaf, self.tree = layer, leaf, tree
        self.keep()

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """Views of the leaf's parameters, without gradients, by the names of the layer's parameters."""
        return {name: parameter.detach()[self._index] for name, parameter in self._whole.items()}

    @property
    def _whole(self) -> dict[str, nn.Parameter]:
        """The layer's parameters that have a part for each leaf."""
        prefix = "leaf_" if isinstance(self.layer, SoftFFF) else ""
        named = self.layer.named_parameters(recurse=False)
        return {name: parameter for name, parameter in named if name.startswith(prefix)}

    @property
    def _index(self) -> tuple[int, ...]:
        """The index of the leaf's part in each of them."""
        if isinstance(self.layer, SoftFFF):
            return (self.leaf,)
        return self.tree, 2**self.layer.depth - 1 + self.leaf  # an FFF's leaf is the last neuron of a path

    def keep(self) -> None:
        """Keeps the leaf as it is now: `restore` and the end of the `with` block return to this state."""
        self._kept = {name: values.clone() for name, values in self.parameters.items()}

    def restore(self) -> None:
        """Restores, bit for bit, the state that was kept last, which at first is the one before the edit."""
        for name, values in self.parameters.items():
            values.copy_(self._kept[name])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()

    @contextlib.contextmanager
    def undone(self) -> Iterator[None]:
        """Within this context, the leaf has the state that was kept last."""
        with LeafEdit(self.layer, self.leaf, self.tree):  # its end returns to the present state
            self.restore()
            yield

    def retrain(self, loss: Callable[[], torch.Tensor], steps: int, lr: float) -> list[float]:
        """Trains only this leaf, with Adam. All other parameters stay bit-identical.

        Args:
            loss: computes a scalar at each step, through the layer.
            steps: of the optimizer.
            lr: learning rate.

        Returns:
            The losses before each step.
        """
        values, whole = list(self.parameters.values()), list(self._whole.values())
        optimizer = torch.optim.Adam(values, lr)
        losses = []
        for _ in range(steps):
            value = loss()
            for own, gradient in zip(values, torch.autograd.grad(value, whole), strict=True):
                own.grad = gradient[self._index]
            optimizer.step()
            losses.append(value.item())
        return losses

    @torch.no_grad()
    def effect(self, x: torch.Tensor) -> dict[str, Change]:
        """Compares the layer's outputs with those in the state that was kept last.

        Args:
            x: `(..., input)`.

        Returns:
            The change `inside` the region of the leaf, and `outside` of it, where outputs stay bit-identical.

        Raises:
            ValueError: the layer is in training mode.
        """
        _check_inference(self.layer, "layer")
        inside = in_region(self.layer, x, self.leaf, self.tree)
        after = self.layer(x)
        with self.undone():
            change = after - self.layer(x)
        return {"inside": _summarize(change, inside), "outside": _summarize(change, ~inside)}

    @torch.no_grad()
    def effect_in_model(self, model: nn.Module, input_ids: torch.Tensor, **inputs: Any) -> dict[str, Change]:
        """Compares a model's outputs with those in the state that was kept last, ignoring padding.

        Args:
            model: a model that contains the layer, and whose first output has an entry for each token.
            input_ids: `(texts, tokens)`.
            inputs: further inputs of the model, from the tokenizer; `attention_mask` `(texts, tokens)` is 0 for
                padding.

        Returns:
            The change for tokens `inside` the region of the leaf, for those `beside` them in the same texts, which see
            the change through attention, and for the tokens of other texts, `outside`, whose outputs stay
            bit-identical.

        Raises:
            ValueError: the model is in training mode, does not contain the layer, or has other outputs.
        """
        _check_inference(model, "model")
        if all(module is not self.layer for module in model.modules()):
            raise ValueError("model does not contain the layer of this edit; the layer should be one of its modules")
        inside = torch.zeros_like(input_ids, dtype=torch.bool)

        def observe(_: int, x: torch.Tensor) -> None:
            found = in_region(self.layer, x, self.leaf, self.tree)
            if found.shape != inside.shape:
                raise ValueError(
                    f"the layer gets tokens of shape {tuple(found.shape)}; it should be {tuple(inside.shape)}, the"
                    " shape of input_ids (of a model optimized for inference, use the original)"
                )
            inside.copy_(found)

        with observe_inputs([self.layer], observe):
            after = model(input_ids=input_ids, **inputs)[0]
        if after.shape[:2] != input_ids.shape:
            raise ValueError(
                f"model has outputs of shape {tuple(after.shape)}; they should be (texts, tokens, ...), as those of"
                " an encoder or a masked language model are"
            )
        with self.undone():
            change = after - model(input_ids=input_ids, **inputs)[0]
        mask = inputs.get("attention_mask")
        real = torch.ones_like(inside) if mask is None else mask != 0
        inside &= real
        text = inside.any(1, keepdim=True)
        groups = {"inside": inside, "beside": text & ~inside & real, "outside": ~text & real}
        return {name: _summarize(change, group) for name, group in groups.items()}


def _summarize(change: torch.Tensor, group: torch.Tensor) -> Change:
    """Of the inputs of a group, from the changes of outputs `(..., outputs)`."""
    largest = change[group].abs().amax(-1).double()
    if not len(largest):
        return Change(0, 0, 0.0, 0.0)
    return Change(len(largest), int((largest != 0).sum()), largest.max().item(), largest.mean().item())


def _check_leaf(layer: FFF | SoftFFF, leaf: int, tree: int) -> None:
    check("leaf", leaf, between(0, 2**layer.depth - 1))
    check("tree", tree, between(0, layer.trees - 1))


def _check_inference(module: nn.Module, name: str) -> None:
    if module.training:
        raise ValueError(f"{name} is in training mode; call {name}.eval() first")
