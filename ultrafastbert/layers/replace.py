"""Replaces the feedforward layers of any model, in place: a transformer of yours, a ViT, BERT, a decoder."""

import difflib
import itertools
import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ultrafastbert.layers.baselines import FeedForward
from ultrafastbert.layers.blocks import BlockLayer
from ultrafastbert.layers.fff import FFF
from ultrafastbert.layers.hard import HardFFF
from ultrafastbert.utils.sizes import DenseSize, NoSize, parse_size
from ultrafastbert.utils.validation import check, integer

LINEAR = (nn.Linear, Conv1D)
NEAR_NAMES = 8
"""Names in the message about a pattern that matches nothing."""
NAMED_WIDTHS = 4
"""Linear layers in the message about a width that cannot be told."""

_WILDCARD = re.compile(r"(\*|\?|\[!?[^]]+\])")


class NoFeedForward(nn.Module):
    """No feedforward layer: zeros, so that with a residual connection the tokens do not change."""

    def forward(self, x: Tensor) -> Tensor:
        """`(..., hidden)` -> zeros `(..., hidden)`."""
        return torch.zeros_like(x)


def build_feedforward(size: str, hidden_size: int) -> FFF | HardFFF | FeedForward | NoFeedForward:
    """A feedforward layer with new weights, `(..., hidden_size)` -> `(..., hidden_size)`.

    Args:
        size: `TREESxDEPTH` for an `FFF`, `1xDEPTHxLEAF` for a `HardFFF`, `dense-NEURONS` for an ordinary layer with
            biases and GELU, `none` for zeros.
        hidden_size: width of input and output.

    Raises:
        ValueError: another size.
    """
    parsed = parse_size(size)
    if isinstance(parsed, NoSize):
        return NoFeedForward()
    if isinstance(parsed, DenseSize):
        return FeedForward(hidden_size, parsed.neurons, hidden_size, activation=nn.GELU)
    if parsed.leaf_size is not None:
        return HardFFF(hidden_size, parsed.depth, parsed.leaf_size)
    return FFF(hidden_size, parsed.depth, parsed.trees)


def replace_feedforward(
    model: nn.Module, pattern: str | tuple[str, str], size: str, hidden_size: int | None = None
) -> dict[str, nn.Module]:
    """Replaces feedforward layers of a model, in place, by trees or other layers with new weights.

    A new layer has the dtype and the device of the old one, and is in training mode if the old one was. Its parameters
    are other ones than before: build the optimiser afterwards. On an error the model does not change.

    Args:
        model: any module, called as `(..., hidden_size)` -> `(..., hidden_size)` at the places that are replaced.
        pattern: a glob that selects submodules by their qualified names, such as `*.mlp` or `layers.[0-5].mlp`. `*`
            stands for any text, dots included, `?` for one character and `[...]` for one of several. If a feedforward
            layer is spread over two modules, a pair of globs: the module with its beginning and activation, and the
            linear layer that ends it, for BERT `("*.intermediate", "*.output.dense")`. The wildcards of a pair stand
            for the same texts. The first module becomes the new layer, the second one `torch.nn.Identity`.
        size: of each new layer, see `build_feedforward`.
        hidden_size: width of input and output; None takes it from the linear layers of a selected module: the input
            width of the first one, which one of them has to return.

    Returns:
        The new layers by the (first) names of the modules that they replace. A module with several selected names
        is replaced by one layer.

    Raises:
        ValueError: `size` is not a size; `pattern` matches nothing (the message lists near names), selects a module
            and another one inside it, or a part of a feedforward layer; a width cannot be told.
    """
    parse_size(size)
    if hidden_size is not None:
        check("hidden_size", hidden_size, integer(1))
    places = _select(model, pattern)
    groups = [tuple(model.get_submodule(name) for name in names) for names in places]
    widths = [
        _hidden_size(names, modules) if hidden_size is None else hidden_size
        for names, modules in zip(places, groups, strict=True)
    ]
    built: dict[tuple[nn.Module, ...], nn.Module] = {}
    replaced = {}
    for names, modules, width in zip(places, groups, widths, strict=True):
        if modules not in built:
            built[modules] = _build_like(modules, model, size, width)
        model.set_submodule(names[0], built[modules])
        for name in names[1:]:
            model.set_submodule(name, nn.Identity())
        replaced[names[0]] = built[modules]
    return replaced


def _build_like(modules: tuple[nn.Module, ...], model: nn.Module, size: str, hidden_size: int) -> nn.Module:
    """A layer of this size with the dtype, device and mode of these modules of the model."""
    parameters = itertools.chain(*(module.parameters() for module in (*modules, model)))
    like = next((p for p in parameters if p.is_floating_point()), torch.empty(0))
    with torch.device(like.device):
        layer = build_feedforward(size, hidden_size)
    return layer.to(like.dtype).train(modules[0].training)


def _select(model: nn.Module, pattern: str | tuple[str, str]) -> list[tuple[str, ...]]:
    """The names of each feedforward layer, one or two, that the pattern selects; see `replace_feedforward`."""
    globs = [pattern] if isinstance(pattern, str) else list(pattern)
    wildcards = [_WILDCARD.findall(glob) for glob in globs]
    if len(globs) not in (1, 2) or any(each != wildcards[0] for each in wildcards):
        raise ValueError(f"pattern is {pattern!r}; it should be a glob, or a pair of globs with the same wildcards")
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    parts = _WILDCARD.split(globs[0])
    expression = re.compile("".join(_regex(part) if i % 2 else re.escape(part) for i, part in enumerate(parts)))
    selected = []
    for match in filter(None, map(expression.fullmatch, modules)):
        texts = iter(match.groups())
        selected.append((match[0], *(_WILDCARD.sub(lambda _, texts=texts: next(texts), glob) for glob in globs[1:])))
    if not selected:
        raise ValueError(f"pattern {globs[0]!r} matches no submodule; near names: {_near(globs[0], modules)}")
    for names in selected:
        for name in names:
            if name not in modules:
                raise ValueError(
                    f"pattern {globs[1]!r} gives {name!r} for {names[0]!r}, and the model has no such submodule; near"
                    f" names: {_near(name, modules)}"
                )
    _check_not_nested([name for names in selected for name in names])
    for names in selected:
        _check_parts(names, modules)
    return selected


def _regex(wildcard: str) -> str:
    """A group of a regular expression for a wildcard of a glob."""
    return {"*": "(.*)", "?": "(.)"}.get(wildcard) or f"({wildcard.replace('[!', '[^', 1)})"


def _near(pattern: str, modules: dict[str, nn.Module]) -> str:
    """The names nearest to a pattern of modules with linear layers; numbers are `*`, so that a stack counts once."""
    names = [name for name, module in modules.items() if any(_widths(module))]
    distinct = dict.fromkeys(re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in names)
    return ", ".join(difflib.get_close_matches(pattern, distinct, NEAR_NAMES, cutoff=0)) or "none has linear layers"


def _check_not_nested(names: list[str]) -> None:
    for name in names:
        outer = next((other for other in names if name.startswith(f"{other}.")), None)
        if outer is not None:
            raise ValueError(f"pattern selects {outer!r} and, inside it, {name!r}; it should select one of them")


def _check_parts(names: tuple[str, ...], modules: dict[str, nn.Module]) -> None:
    """Checks that a place is a whole feedforward layer, as far as the types of its modules tell."""
    if isinstance(modules[names[0]], LINEAR):
        raise ValueError(
            f"pattern selects {names[0]!r}, a linear layer alone; it should select the module that holds both linear"
            " layers and the activation between them, or a pair of modules whose first one holds the activation"
        )
    if len(names) == 2 and not isinstance(modules[names[1]], (*LINEAR, nn.Identity)):
        inside = [name for name, _ in modules[names[1]].named_modules(prefix=names[1]) if name != names[1]]
        linear = [name for name in inside if isinstance(modules[name], LINEAR)]
        raise ValueError(
            f"pattern selects {names[1]!r}, a {type(modules[names[1]]).__name__}, as the second of a pair; it should"
            f" be the linear layer that ends the feedforward layer{f', such as {linear[-1]!r}' if linear else ''}"
        )


def _hidden_size(names: tuple[str, ...], modules: tuple[nn.Module, ...]) -> int:
    """The width that a feedforward layer takes and returns."""
    widths = [width for module in modules for width in _widths(module)]
    if widths and any(output == widths[0][0] for _, output in widths):
        return widths[0][0]
    found = ", ".join(f"{first} -> {last}" for first, last in widths[:NAMED_WIDTHS]) or "none"
    raise ValueError(
        f"the width of {' and '.join(names)} cannot be told from its linear layers ({found}); it should return what"
        " the first of them takes. Give hidden_size, or a pair of patterns if the feedforward layer is spread over two"
        " modules"
    )


def _widths(module: nn.Module) -> Iterator[tuple[int, int]]:
    """Input and output widths of the linear layers in a module, and of the layers of this package."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            yield part.in_features, part.out_features
        elif isinstance(part, Conv1D):
            yield part.nx, part.nf
        elif isinstance(part, FFF):
            yield part.hidden_size, part.hidden_size
        elif isinstance(part, BlockLayer):
            yield part.input_size, part.output_size
