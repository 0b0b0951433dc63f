"""Stands for `ops.native` in code that comes with a model: the package's native operator, where it is installed."""

import functools
import warnings
from types import ModuleType

import torch
from torch import Tensor


def fff(x: Tensor, weight_in: Tensor, bias_in: Tensor | None, weight_out: Tensor) -> Tensor:
    """`ops.fff` for `(..., hidden)`."""
    return _require().fff(x, weight_in, bias_in, weight_out)


def route(x: Tensor, weight_in: Tensor, bias_in: Tensor | None) -> Tensor:
    """`ops.route` for tokens `(tokens, hidden)`."""
    return _require().route(x, weight_in, bias_in)


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether the operator can be used; warns once if not."""
    native = _find()
    if native is None:
        _warn()
    return native is not None and native.available()


def _require() -> ModuleType:
    native = _find()
    if native is None:
        raise RuntimeError("backend 'native' needs the package ultrafastbert: pip install ultrafastbert")
    return native


@functools.cache
def _find() -> ModuleType | None:
    try:
        from ultrafastbert.ops import native
    except ImportError:
        return None
    return native


@functools.cache
def _warn() -> None:
    warnings.warn(
        "the trees of this model run in plain PyTorch, because the package ultrafastbert is not installed; with it "
        "(pip install ultrafastbert) and a C++ compiler they are faster on a CPU",
        stacklevel=4,
    )
