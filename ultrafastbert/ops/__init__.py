"""The fast feedforward operator: one function with several backends.

A backend is a module with two functions, `fff` and `route`. They take tokens of shape `(tokens, hidden)` and may
assume that the arguments have been checked and have one dtype. `reference` is the definition; the others compute the
same function faster. Near a decision boundary, where a pre-activation is within rounding of zero, two backends may
send a token to different children.

`native` is written in C++ and checks its arguments there. On a CPU it is called before any check in Python, which for
a single token would take several times as long as the arithmetic.
"""

import os
from types import ModuleType

import torch
from torch import Tensor

from ultrafastbert.ops import blocked, dense, gather, grouped, native, reference, triton
from ultrafastbert.ops.checks import autocast_dtype, check_devices, check_dtypes, check_layouts
from ultrafastbert.utils.validation import check, one_of

BACKENDS = {
    "reference": reference,
    "dense": dense,
    "gather": gather,
    "native": native,
    "blocked": blocked,
    "triton": triton,
}
KNOWN_BACKEND = one_of(*BACKENDS)


def fff(
    x: Tensor, weight_in: Tensor, bias_in: Tensor | None, weight_out: Tensor, backend: str | None = None
) -> Tensor:
    """Evaluates `trees` fast feedforward trees on every token and adds their outputs.

    Args:
        x: `(..., hidden)`, floating point.
        weight_in: `(trees, nodes, hidden)`, input weights in heap order: node i has the children 2i+1 and 2i+2.
            `nodes` is 2^(depth+1) - 1.
        bias_in: `(trees, nodes)`, or None for no biases.
        weight_out: `(trees, nodes, hidden)`, output weights.
        backend: a key of `BACKENDS`. None uses the backend in the environment variable `UFB_FFF_BACKEND` or, if it is
            not set, the one that `choose_backend` returns.

    Returns:
        `(..., hidden)` in the dtype of `x`; under autocast in autocast's dtype, as for linear layers. The gradient
        flows through the neurons on the paths, not through the choice of a path. `gather`, `native` and `blocked` have
        no second derivatives and no forward-mode derivatives, and the last two do not support `torch.func`;
        `reference` and `dense` have no such limits.

    Raises:
        ValueError: a shape, device or layout that does not fit, or an unknown backend. The message names the argument.
        TypeError: dtypes that differ or are not floating point.
        ultrafastbert.ops.native.build.BuildError: `native` is requested by name and cannot be built or loaded.

    Source: arXiv 2311.10770, algorithm 1.
    """
    on_cpu = weight_in.dim() == 3 and x.is_cpu and not torch.is_autocast_enabled("cpu")
    if on_cpu and _backend_name(backend, x, weight_in) == "native":
        try:
            return native.fff(x, weight_in, bias_in, weight_out)
        except (RuntimeError, ValueError, TypeError):
            _prepare(x, weight_in, bias_in, weight_out)  # raises the error of `fff` if an argument is wrong
            raise
    x, weight_in, bias_in, weight_out = _prepare(x, weight_in, bias_in, weight_out)
    tokens = x.reshape(-1, x.shape[-1])
    return _backend(backend, tokens, weight_in).fff(tokens, weight_in, bias_in, weight_out).view(x.shape)


@torch.no_grad()
def route(x: Tensor, weight_in: Tensor, bias_in: Tensor | None, backend: str | None = None) -> Tensor:
    """Returns the paths of the tokens: `(..., hidden)` -> int64 `(..., trees, depth + 1)` of node indices.

    The first entry is the root, 0; the last one is the leaf, in [2^depth - 1, 2^(depth+1) - 2]. Arguments and errors
    are those of `fff`.
    """
    x, weight_in, bias_in, _ = _prepare(x, weight_in, bias_in, weight_in)
    tokens = x.reshape(-1, x.shape[-1])
    path = _backend(backend, tokens, weight_in).route(tokens, weight_in, bias_in)
    return path.view(*x.shape[:-1], *path.shape[1:])


def choose_backend(x: Tensor, weight_in: Tensor) -> str:
    """Returns the name of the fastest backend for these tensors.

    The choice depends on the device and on the ratio of a tree's neurons to those that a token uses:

    - On a CPU, `native` is faster than `dense` from a ratio of about 3 (depth 3) on, for any number of trees and
      tokens, with and without gradients (docs/benchmarks/cpu.md). Without `native`, from a ratio of 30 (depth 7) on
      `gather` is used without gradients and `blocked` with them.
    - On a GPU with a kernel for grouped products, `blocked` is used from a ratio of 50 (depth 8) on. Sorting the
      tokens and restoring their order takes as long as a dense layer of about 400 neurons.
    - Otherwise `dense`, whose matrix products make good use of an accelerator.
    """
    nodes = weight_in.shape[1]
    ratio = nodes / nodes.bit_length()
    if not x.is_cpu:
        fits = ratio >= 50 and weight_in.shape[-1] % grouped.ALIGNMENT == 0
        return "blocked" if fits and grouped.has_kernel(x.device, x.dtype) else "dense"
    if ratio < 3:
        return "dense"
    if native.available():
        return "native"
    if ratio < 30:
        return "dense"
    training = torch.is_grad_enabled() and (x.requires_grad or weight_in.requires_grad)
    return "blocked" if training else "gather"


def _backend_name(backend: str | None, x: Tensor, weight_in: Tensor) -> str:
    return backend or os.environ.get("UFB_FFF_BACKEND") or choose_backend(x, weight_in)


def _backend(backend: str | None, tokens: Tensor, weight_in: Tensor) -> ModuleType:
    name = _backend_name(backend, tokens, weight_in)
    check("backend (or the variable UFB_FFF_BACKEND)", name, KNOWN_BACKEND)
    return BACKENDS[name]


def _prepare(
    x: Tensor, weight_in: Tensor, bias_in: Tensor | None, weight_out: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Checks the arguments and, under autocast, casts them to autocast's dtype."""
    named = {"x": x, "weight_in": weight_in, "weight_out": weight_out}
    if bias_in is not None:
        named["bias_in"] = bias_in
    check_layouts(named)
    _check_shapes(x, weight_in, bias_in, weight_out)
    check_devices(named)
    if (dtype := autocast_dtype(x)) is not None:
        named = {name: tensor.to(dtype) for name, tensor in named.items()}
    check_dtypes(named)
    return named["x"], named["weight_in"], named.get("bias_in"), named["weight_out"]


def _check_shapes(x: Tensor, weight_in: Tensor, bias_in: Tensor | None, weight_out: Tensor) -> None:
    shape = tuple(weight_in.shape)
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"weight_in has shape {shape}; it should be (trees, nodes, hidden), each at least 1")
    trees, nodes, hidden = shape
    if nodes & (nodes + 1):
        raise ValueError(
            f"weight_in has {nodes} nodes per tree; a full tree has 2^(depth+1) - 1 nodes: 1, 3, 7, 15, ..."
        )
    if x.dim() == 0 or x.shape[-1] != hidden:
        raise ValueError(f"x has shape {tuple(x.shape)}; it should be (..., {hidden}), as wide as weight_in")
    if bias_in is not None and bias_in.shape != (trees, nodes):
        raise ValueError(f"bias_in has shape {tuple(bias_in.shape)}; it should be {(trees, nodes)}")
    if weight_out.shape != weight_in.shape:
        raise ValueError(f"weight_out has shape {tuple(weight_out.shape)}; it should be that of weight_in, {shape}")
