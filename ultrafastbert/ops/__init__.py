"""The fast feedforward operator: one function, several backends.

A backend is a module with two functions, `fff` and `route`, that take tokens `(tokens, hidden)` and may assume
checked arguments of one dtype. `native` is written in C++ and checks for itself, and here it is called before all
else: for a single token, checking in Python takes several times as long as the arithmetic.
`reference` states the mathematics; the others compute the same more quickly. Near a decision boundary, where a
pre-activation is within rounding of zero, two backends may send a token to different children.
"""

import os

import torch

from ultrafastbert.ops import blocked, dense, gather, native, reference

BACKENDS = {"reference": reference, "dense": dense, "gather": gather, "native": native, "blocked": blocked}


def fff(
    x: torch.Tensor,
    weight_in: torch.Tensor,
    bias_in: torch.Tensor | None,
    weight_out: torch.Tensor,
    backend: str | None = None,
) -> torch.Tensor:
    """Evaluates `trees` fast feedforward trees on every token and adds up their outputs.

    Args:
        x: `(..., hidden)`, floating point.
        weight_in: `(trees, nodes, hidden)`, input weights in heap order: node i has the children 2i+1 and 2i+2.
            `nodes` is 2^(depth+1) - 1; it determines the depth.
        bias_in: `(trees, nodes)`, or None for no biases.
        weight_out: `(trees, nodes, hidden)`, output weights.
        backend: a key of `BACKENDS`; None picks by device and size (see `choose_backend`), unless the
            environment variable `UFB_FFF_BACKEND` names one.

    Returns:
        `(..., hidden)` in the dtype of `x` (under autocast: in autocast's dtype, as linear layers do).
        The gradient flows through the neurons on the paths, not through the choice of path. `gather`, `native` and
        `blocked` have no second derivatives and no forward-mode ones, the last two none through `torch.func` either;
        `reference` and `dense` have them all.

    Raises:
        ValueError: a shape, device or backend name that does not fit; the message names the argument.
        TypeError: dtypes that differ or are not floating point.
        ultrafastbert.ops.native.build.BuildError: `native` is asked for by name and cannot be built or loaded.

    Source: arXiv 2311.10770, algorithm 1.
    """
    if weight_in.dim() == 3 and x.is_cpu and not torch.is_autocast_enabled("cpu"):
        name = _name(backend, x, weight_in)
        if name == "native":
            try:
                return native.fff(x, weight_in, bias_in, weight_out)
            except (RuntimeError, ValueError, TypeError):
                _prepare(x, weight_in, bias_in, weight_out)  # if an argument is wrong, this says which
                raise
    x, weight_in, bias_in, weight_out = _prepare(x, weight_in, bias_in, weight_out)
    tokens = x.reshape(-1, x.shape[-1])
    return _backend(backend, tokens, weight_in).fff(tokens, weight_in, bias_in, weight_out).view(x.shape)


@torch.no_grad()
def route(
    x: torch.Tensor, weight_in: torch.Tensor, bias_in: torch.Tensor | None, backend: str | None = None
) -> torch.Tensor:
    """The paths that tokens take: `(..., hidden)` -> int64 `(..., trees, depth + 1)` of node indices.

    Entry 0 is the root, 0; the last entry is the leaf, in [2^depth - 1, 2^(depth+1) - 2]. Arguments and errors
    are those of `fff`.
    """
    x, weight_in, bias_in, _ = _prepare(x, weight_in, bias_in, weight_in)
    tokens = x.reshape(-1, x.shape[-1])
    path = _backend(backend, tokens, weight_in).route(tokens, weight_in, bias_in)
    return path.view(*x.shape[:-1], *path.shape[1:])


def choose_backend(x: torch.Tensor, weight_in: torch.Tensor) -> str:
    """The name of the backend that is used when none is asked for.

    What counts is how many neurons a tree has for each one that a token uses. On a CPU `native` overtakes `dense`
    from about 3 (depth 3) on, whatever the trees and tokens, with gradients and without (docs/benchmarks/cpu.md).
    Where it cannot be used, from about 30 (depth 7) on `gather` takes its place in a forward pass and `blocked` with
    gradients. On a GPU with a kernel for grouped products, `blocked` from 50 (depth 8) on: sorting the tokens and
    bringing them back moves as many bytes as there is time for in a dense layer of some 400 neurons. Elsewhere
    `dense`, whose products keep an accelerator's matrix units busy.
    """
    nodes = weight_in.shape[1]
    neurons_per_used = nodes / nodes.bit_length()
    if not x.is_cpu:
        fits = neurons_per_used >= 50 and weight_in.shape[-1] % blocked.ALIGNMENT == 0
        return "blocked" if fits and blocked.has_kernel(x.device, x.dtype) else "dense"
    if neurons_per_used < 3:
        return "dense"
    if native.available():
        return "native"
    if neurons_per_used < 30:
        return "dense"
    training = torch.is_grad_enabled() and (x.requires_grad or weight_in.requires_grad)
    return "blocked" if training else "gather"


def _name(backend, x, weight_in):
    return backend or os.environ.get("UFB_FFF_BACKEND") or choose_backend(x, weight_in)


def _backend(backend, tokens, weight_in):
    name = _name(backend, tokens, weight_in)
    if name not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise ValueError(f"backend (or the variable UFB_FFF_BACKEND) is {name!r}; it should be one of {known}")
    return BACKENDS[name]


def _prepare(x, weight_in, bias_in, weight_out):
    """Checks the arguments and, under autocast, brings them to autocast's dtype."""
    _check_shapes(x, weight_in, bias_in, weight_out)
    named = {"x": x, "weight_in": weight_in, "bias_in": bias_in, "weight_out": weight_out}
    named = {name: tensor for name, tensor in named.items() if tensor is not None}
    for name, tensor in named.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{name} is of dtype {tensor.dtype}; it should be of a floating-point dtype")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on device {tensor.device}; it should be where x is, on {x.device}")
    device = x.device.type
    if _has_autocast(device) and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        named = {name: tensor.to(dtype) for name, tensor in named.items()}
    for name, tensor in named.items():
        if tensor.dtype != named["x"].dtype:
            raise TypeError(f"{name} is of dtype {tensor.dtype}; it should be that of x, {named['x'].dtype}")
    return named["x"], named["weight_in"], named.get("bias_in"), named["weight_out"]


@torch.compiler.assume_constant_result  # PyTorch 2.11 cannot trace it
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


def _check_shapes(x, weight_in, bias_in, weight_out):
    if weight_in.dim() != 3 or 0 in weight_in.shape:
        raise ValueError(
            f"weight_in has shape {tuple(weight_in.shape)}; it should be (trees, nodes, hidden), each at least 1"
        )
    trees, nodes, hidden = weight_in.shape
    if nodes & (nodes + 1):
        raise ValueError(f"weight_in has {nodes} nodes a tree; a full tree has 2^(depth+1) - 1: 1, 3, 7, 15, ...")
    if x.dim() == 0 or x.shape[-1] != hidden:
        raise ValueError(f"x has shape {tuple(x.shape)}; it should be (..., {hidden}), as wide as weight_in")
    if bias_in is not None and bias_in.shape != (trees, nodes):
        raise ValueError(f"bias_in has shape {tuple(bias_in.shape)}; it should be {(trees, nodes)}")
    if weight_out.shape != weight_in.shape:
        raise ValueError(
            f"weight_out has shape {tuple(weight_out.shape)}; it should be that of weight_in, {tuple(weight_in.shape)}"
        )
