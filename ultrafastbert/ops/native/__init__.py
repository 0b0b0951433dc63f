"""The C++ operator as a backend, for CPUs. It is built and loaded when it is used for the first time.

- The operators are registered with PyTorch: kernels and schemas in C++ (native.cpp), shapes and the gradient in
  `registration`. So `torch.compile` and `torch.export` treat each as one call.
- With gradients, `fff_with_path` keeps each token's leaf and pre-activations for the backward pass, which reads only
  the nodes on the paths. Gradients of weights are dense. There are no second derivatives.
- A program exported with this backend needs the library: call `available()` before loading the program.
"""

import functools
import threading
import warnings

import torch
from torch import Tensor


def fff(x: Tensor, weight_in: Tensor, bias_in: Tensor | None, weight_out: Tensor) -> Tensor:
    """`ops.fff` for `(..., hidden)`, with its own checks of the arguments."""
    _require()
    return torch.ops.ultrafastbert.fff.default(x, weight_in, bias_in, weight_out)


def route(x: Tensor, weight_in: Tensor, bias_in: Tensor | None) -> Tensor:
    """`ops.route` for tokens `(tokens, hidden)`."""
    _require()
    return torch.ops.ultrafastbert.route.default(x, weight_in, bias_in)


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether the operator can be used. The first call builds and loads it; if that fails, it warns once."""
    if error := _load():
        _warn(str(error))
    return error is None


@torch.compiler.assume_constant_result
def _require() -> None:
    if error := _load():
        raise error


@functools.cache
def _warn(message: str) -> None:
    warnings.warn(f"{message}\nThe slower backends 'gather', 'blocked' and 'dense' are used instead.", stacklevel=4)


def _load() -> Exception | None:
    """Loads the library and registers the operators, once. Returns the error if that failed."""
    with _loading:
        return _load_once()


_loading = threading.Lock()  # operators can be registered only once


@functools.cache
def _load_once() -> Exception | None:
    # imported here, so that `python -m ultrafastbert.ops.native.build` does not find its module already imported
    from ultrafastbert.ops.native import build, registration

    if hasattr(torch.ops.ultrafastbert, "fff"):  # this module has been reloaded, for example in a notebook
        return None
    try:
        build.load()
    except build.BuildError as error:
        return error
    registration.register()
    return None
