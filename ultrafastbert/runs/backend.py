"""The backend that trains a model's trees: on a GPU chosen by measurement, once per run.

Which backend is fastest depends on the GPU, the libraries, and the sizes of trees and batch, and a kernel that is
right on one GPU may be wrong on another. So at the start of a run each candidate computes a layer of the run's sizes;
those that fail or whose output or gradients are wrong are dropped, and the fastest of the others trains.
"""

import functools
import os
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ultrafastbert import ops
from ultrafastbert.layers.fff import FFF
from ultrafastbert.utils.timing import take_turns

Measured = dict[str, dict[str, float | str]]
"""For each size of trees, such as `1x11`, and each candidate: the seconds of a forward and backward pass, or why the
candidate was dropped."""

CANDIDATES = ("dense", "blocked", "triton")
CHECKED_TOKENS = 512
TOLERANCES = {torch.float32: 1e-2, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest error of a right backend, relative to the norm. Wrong indices give errors near 1; float32 may be TF32."""


def is_measured(device: torch.device) -> bool:
    """Whether backends are chosen by measurement: on a GPU, unless `UFB_FFF_BACKEND` says which one to use."""
    return device.type == "cuda" and not os.environ.get("UFB_FFF_BACKEND")


def use_fastest_backends(model: nn.Module, tokens: int, dtype: torch.dtype) -> None:
    """Measures the candidates, where `is_measured` says so, and gives the layers the fastest ones."""
    layers = _free_layers(model)
    if layers and is_measured(layers[0].weight_in.device):
        use_backends(model, fastest(measure_backends(model, tokens, dtype)))


def measure_backends(
    model: nn.Module, tokens: int, dtype: torch.dtype, candidates: Sequence[str] = CANDIDATES
) -> Measured:
    """Checks and times the candidates for each size of the model's trees, once per process.

    Args:
        model: on the device that trains it. Layers with a backend of their own do not count.
        tokens: that a layer gets at a time.
        dtype: of the arithmetic.
        candidates: keys of `ops.BACKENDS`.
    """
    measured: Measured = {}
    for layer in _free_layers(model):
        shape = (layer.hidden_size, layer.depth, layer.trees)
        measured[_size(layer)] = _measure(*shape, tokens, layer.weight_in.device, dtype, tuple(candidates))
    return measured


def fastest(measured: Measured) -> dict[str, str]:
    """The fastest candidate for each size.

    Raises:
        RuntimeError: every candidate was dropped for some size; the message has the reasons.
    """
    chosen = {}
    for size, results in measured.items():
        times = {name: seconds for name, seconds in results.items() if isinstance(seconds, float)}
        if not times:
            raise RuntimeError(f"no backend computes trees of {size} here: {results}")
        chosen[size] = min(times, key=lambda name: times[name])
    return chosen


def use_backends(model: nn.Module, chosen: dict[str, str]) -> None:
    """Gives layers without a backend of their own the one that `chosen` has for their size."""
    for layer in _free_layers(model):
        layer.backend = chosen.get(_size(layer))


def _free_layers(model: nn.Module) -> list[FFF]:
    return [module for module in model.modules() if isinstance(module, FFF) and module.backend is None]


def _size(layer: FFF) -> str:
    return f"{layer.trees}x{layer.depth}"


def describe(results: dict[str, float | str]) -> str:
    """The results for one size in a line."""
    parts = [
        f"{name} {1e3 * value:.3g} ms" if isinstance(value, float) else f"{name}: {value}"
        for name, value in results.items()
    ]
    return ", ".join(parts)


@functools.cache
def _measure(
    hidden: int,
    depth: int,
    trees: int,
    tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    candidates: tuple[str, ...],
) -> dict[str, float | str]:
    make = functools.partial(_make_arguments, hidden, depth, trees, device, dtype)
    checked, timed = make(CHECKED_TOKENS), make(tokens)
    results: dict[str, float | str] = {}
    calls = {}
    for name in candidates:
        try:
            results[name] = _check(name, checked)
            if not results[name]:
                calls[name] = functools.partial(_evaluate, name, timed)
                calls[name]()  # compiles, and shows whether the memory suffices
        except Exception as error:  # of a compiler, a driver, memory: whatever it is, another backend may do
            calls.pop(name, None)
            results[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    times = take_turns(calls, seconds=0.1, device=device.type)
    return results | {name: statistics.median(values) for name, values in times.items()}


def _make_arguments(
    hidden: int, depth: int, trees: int, device: torch.device, dtype: torch.dtype, tokens: int
) -> list[Tensor]:
    """Tokens and weights for which all backends decide alike.

    Pre-activations are small integers and a half, times a power of two, which all dtypes and orders of addition give
    exactly. They have a standard deviation near 1, so that the paths are spread over the tree.
    """
    generator = torch.Generator().manual_seed(0)
    nodes, scale = 2 ** (depth + 1) - 1, 2.0 ** -round(torch.tensor(hidden * 2 / 3).log2().item() / 2)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator, dtype=torch.int8)

    x = integers(-1, 1, tokens, hidden).to(device, dtype)
    weight_in = (2 * integers(0, 1, trees, nodes, hidden) - 1).to(device, dtype) * scale
    bias_in = torch.full((trees, nodes), scale / 2).to(device, dtype)
    weight_out = (2 * integers(0, 1, trees, nodes, hidden) - 1).to(device, dtype) * scale
    return [tensor.requires_grad_() for tensor in (x, weight_in, bias_in, weight_out)]


def _evaluate(backend: str, arguments: list[Tensor]) -> list[Tensor]:
    """The output, and the gradients of the arguments for an upstream gradient that is the input."""
    output = ops.fff(*arguments, backend=backend)
    return [output, *torch.autograd.grad(output, arguments, arguments[0].detach())]


def _check(backend: str, arguments: list[Tensor]) -> str:
    """Describes the first wrong result of a backend; returns an empty string if all results are right."""
    exact = [argument.detach().float().requires_grad_() for argument in arguments]
    names = ("output", "gradient of x", "gradient of weight_in", "gradient of bias_in", "gradient of weight_out")
    for name, result, truth in zip(names, _evaluate(backend, arguments), _evaluate("reference", exact), strict=True):
        error = ((result.float() - truth).norm() / truth.norm()).item()
        if not error <= TOLERANCES[arguments[0].dtype]:  # NaN is wrong, too
            return f"wrong: its {name} differs by {error:.1%}"
    return ""
