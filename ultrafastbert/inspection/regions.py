"""The regions of the input space that the leaves of a tree are responsible for: as data, and to be changed one by one.

A tree's decisions cut the input space into 2^depth convex regions, one for each leaf. What is notable:
- a leaf computes the output of its own region and of nothing else, so an edit of it changes no other input's output.
  `LeafEdit.effect` measures that for a layer. In an encoder other tokens see the change through attention;
  `LeafEdit.effect_in_model` measures how far it reaches;
- an edit is undone at the end of its `with` block unless it is kept, whatever happens inside;
- all of it goes by `layer.route`, so it is the same for `FFF` and `SoftFFF`, and says what inference does.

Regions and edits of single leaves as means to interpret and to mend a network: Belcak & Wattenhofer, "Fast Feedforward
Networks", arXiv 2308.14711.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ultrafastbert.layers.fff import FFF
from ultrafastbert.layers.soft import SoftFFF
from ultrafastbert.layers.usage import leaves


def in_region(layer: FFF | SoftFFF, x: torch.Tensor, leaf: int, tree: int = 0) -> torch.Tensor:
    """Which inputs are in the region of a leaf: `(..., input)` -> bool `(...)`, so `x[in_region(layer, x, 3)]` are
    those of leaf 3.

    Raises:
        ValueError: a leaf or tree that the layer does not have.
    """
    _check(layer, leaf, tree)
    return leaves(layer, x)[..., tree] == leaf


def decisions(layer: FFF | SoftFFF) -> tuple[torch.Tensor, torch.Tensor]:
    """The hyperplanes at which nodes decide: `weight` `(trees, nodes, input)` and `bias` `(trees, nodes)`, nodes in
    heap order without the leaves. An input goes to the right where `weight @ x + bias` is greater than 0.

    Raises:
        ValueError: nodes of several neurons, which do not decide at hyperplanes.
    """
    if isinstance(layer, SoftFFF):
        if layer.node_size > 1:
            raise ValueError(
                f"layer has node_size {layer.node_size}; only nodes of a single neuron decide at hyperplanes"
            )
        return layer.node_weight_in.detach().transpose(0, 1), layer.node_bias_in.detach().transpose(0, 1)
    inner = 2**layer.depth - 1
    weight = layer.weight_in.detach()[:, :inner]
    bias = torch.zeros_like(weight[..., 0]) if layer.bias_in is None else layer.bias_in.detach()[:, :inner]
    return weight, bias


def decision_logits(layer: FFF | SoftFFF, x: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    """What the nodes on paths decide by: inputs `(inputs, input)` and their paths `(inputs, trees, depth + 1)`, from
    `layer.route`, -> `(inputs, trees, depth)`, at least float32. Greater than 0 is right; a sigmoid makes it a
    probability."""
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
    """The decisions that bound a region, from the root down: the region is where all of them fall as `right` says.

    Attributes:
        node: int64 `(depth,)`, heap indices.
        weight: `(depth, input)`.
        bias: `(depth,)`.
        right: bool `(depth,)`, whether the region is where `weight @ x + bias` is greater than 0.
    """

    node: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    right: torch.Tensor

    def contains(self, x: torch.Tensor) -> torch.Tensor:
        """Which inputs are inside, `(..., input)` -> bool `(...)`; on a boundary, up to rounding."""
        return ((x @ self.weight.T + self.bias > 0) == self.right).all(-1)


def half_spaces(layer: FFF | SoftFFF, leaf: int, tree: int = 0) -> HalfSpaces:
    """The half-spaces whose intersection is the region of a leaf.

    Raises:
        ValueError: a leaf or tree that the layer does not have, or nodes of several neurons.
    """
    _check(layer, leaf, tree)
    weight, bias = decisions(layer)
    path = [2**layer.depth - 1 + leaf]
    while path[0]:
        path.insert(0, (path[0] - 1) // 2)
    child = torch.tensor(path[1:], dtype=torch.long, device=weight.device)
    node = (child - 1) // 2
    return HalfSpaces(node, weight[tree, node], bias[tree, node], right=child % 2 == 0)


# editing a leaf


@dataclass
class Change:
    """How outputs changed in a group of inputs; the change of an input is the largest absolute one of its outputs.

    Attributes:
        inputs: how many there are.
        changed: how many of them have an output that is not the same to the last bit.
        largest: the largest change, 0 without inputs.
        mean: the mean change, 0 without inputs.
    """

    inputs: int
    changed: int
    largest: float
    mean: float


class LeafEdit:
    """The parameters of one leaf, to be changed in place; the end of its `with` block puts back what they were.

        with LeafEdit(layer, leaf=3) as edit:
            edit.parameters["weight_out"].zero_()
            print(edit.effect(x))
            edit.keep()  # without this, nothing stays

    Args:
        layer: whose leaf it is.
        leaf: from 0 to 2^depth - 1.
        tree: of a layer with several.

    Raises:
        ValueError: a leaf or tree that the layer does not have.
    """

    def __init__(self, layer: FFF | SoftFFF, leaf: int, tree: int = 0):
        _check(layer, leaf, tree)
        self.layer, self.leaf, self.tree = layer, leaf, tree
        self.keep()

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """By the name that they are part of, views of the leaf's own parameters, without gradients."""
        return {name: parameter.detach()[self._index] for name, parameter in self._whole.items()}

    @property
    def _whole(self) -> dict[str, nn.Parameter]:
        """The parameters that have a part for each leaf."""
        named = dict(self.layer.named_parameters(recurse=False))
        if isinstance(self.layer, SoftFFF):
            return {name: parameter for name, parameter in named.items() if name.startswith("leaf_")}
        return named

    @property
    def _index(self) -> tuple[int, ...]:
        """Where in each of them that part is."""
        if isinstance(self.layer, SoftFFF):
            return (self.leaf,)
        return self.tree, 2**self.layer.depth - 1 + self.leaf  # an FFF's leaf is the last neuron of a path

    def keep(self) -> None:
        """Makes what the leaf now is what will be restored."""
        self._kept = {name: values.clone() for name, values in self.parameters.items()}

    def restore(self) -> None:
        """Puts back, to the last bit, what was last kept: first of all, what the leaf was when this was made."""
        for name, values in self.parameters.items():
            values.copy_(self._kept[name])

    def __enter__(self) -> "LeafEdit":
        return self

    def __exit__(self, *exception) -> None:
        self.restore()

    @contextlib.contextmanager
    def undone(self) -> Iterator[None]:
        """While it is entered, the leaf is what was last kept."""
        edited = {name: values.clone() for name, values in self.parameters.items()}
        self.restore()
        try:
            yield
        finally:
            for name, values in self.parameters.items():
                values.copy_(edited[name])

    def retrain(self, loss: Callable[[], torch.Tensor], steps: int, lr: float) -> list[float]:
        """Trains this leaf alone with Adam; every other parameter stays as it is to the last bit.

        Args:
            loss: computes a scalar anew at each step, through the layer.
            steps: of the optimiser.
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
        """What the edit, compared with what was last kept, does to the layer's outputs.

        Args:
            x: `(..., input)`.

        Returns:
            `inside` the region of the leaf, where all change is meant to be, and `outside` of it.

        Raises:
            ValueError: the layer is in training mode.
        """
        _check_inference(self.layer, "layer")
        inside = in_region(self.layer, x, self.leaf, self.tree)
        after = self.layer(x)
        with self.undone():
            change = _change(self.layer(x), after)
        return {"inside": _summarise(change, inside), "outside": _summarise(change, ~inside)}

    @torch.no_grad()
    def effect_in_model(self, model: nn.Module, input_ids: torch.Tensor, **inputs) -> dict[str, Change]:
        """What the edit, compared with what was last kept, does to a model's outputs; padding is left out.

        Args:
            model: of which the layer is a part, with one output for each token (its first).
            input_ids: `(texts, tokens)`.
            inputs: what else the model takes, as the tokenizer gives it; `attention_mask` `(texts, tokens)` is 0 for
                padding.

        Returns:
            `inside`: tokens that come to the leaf; `beside`: the other tokens of their texts, which see the change
            through attention; `outside`: the tokens of texts that do not come there, in which nothing should change.

        Raises:
            ValueError: the model is in training mode, does not have the layer, or has other outputs.
        """
        _check_inference(model, "model")
        if all(module is not self.layer for module in model.modules()):
            raise ValueError("model does not have the layer of this edit; it should be the one it was taken from")
        inside = torch.zeros_like(input_ids, dtype=torch.bool)

        def see(layer, arguments):
            found = in_region(layer, arguments[0], self.leaf, self.tree)
            if found.shape != inside.shape:
                raise ValueError(
                    f"the layer sees tokens of shape {tuple(found.shape)}; they should be {tuple(inside.shape)}, as"
                    " input_ids are (of an optimised model, take the one it was made from)"
                )
            inside.copy_(found)

        hook = self.layer.register_forward_pre_hook(see)
        try:
            after = model(input_ids=input_ids, **inputs)[0]
        finally:
            hook.remove()
        if after.shape[:2] != input_ids.shape:
            raise ValueError(
                f"model has outputs of shape {tuple(after.shape)}; they should be (texts, tokens, ...), as those of"
                " an encoder or a masked language model are"
            )
        with self.undone():
            change = _change(model(input_ids=input_ids, **inputs)[0], after)
        mask = inputs.get("attention_mask")
        real = torch.ones_like(inside) if mask is None else mask != 0
        inside &= real
        text = inside.any(1, keepdim=True)
        groups = {"inside": inside, "beside": text & ~inside & real, "outside": ~text & real}
        return {name: _summarise(change, group) for name, group in groups.items()}


def _change(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return (after - before).abs().amax(-1)


def _summarise(change: torch.Tensor, group: torch.Tensor) -> Change:
    change = change[group].double()
    if not len(change):
        return Change(0, 0, 0.0, 0.0)
    return Change(len(change), int((change != 0).sum()), change.max().item(), change.mean().item())


def _check(layer: FFF | SoftFFF, leaf: int, tree: int) -> None:
    for name, index, count in (("leaf", leaf, 2**layer.depth), ("tree", tree, layer.trees)):
        if not 0 <= index < count:
            raise ValueError(f"{name} is {index}; the layer has those from 0 to {count - 1}")


def _check_inference(module: nn.Module, name: str) -> None:
    if module.training:
        raise ValueError(f"{name} is in training mode; call {name}.eval() first, for the outputs of inference")
