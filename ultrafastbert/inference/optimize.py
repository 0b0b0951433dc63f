"""`optimize_for_inference`: copies an encoder and replaces its parts by those that are fast on this CPU."""

import copy
import sys
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from torch import nn

from ultrafastbert.inference.arithmetic import SHAPES, TOLERANCE, Arithmetic, Shape, choose
from ultrafastbert.inference.operators import (
    Int8Linear,
    PackedLinear,
    linear_layers,
    norms_of,
)
from ultrafastbert.inference.saved import DTYPES, OptimizedConfig, OptimizedLoader
from ultrafastbert.modeling_ultrafastbert import UltraFastBertModel, UltraFastBertPreTrainedModel
from ultrafastbert.ops import native
from ultrafastbert.utils.hardware import multiplies_int8
from ultrafastbert.utils.validation import NOT_NEGATIVE, Rule, check, one_of

Model = TypeVar("Model", bound=nn.Module)


def optimize_for_inference(
    model: Model,
    dtype: torch.dtype | str = "auto",
    int8: bool | str = "auto",
    verbose: bool = True,
    tolerance: float = TOLERANCE,
    shapes: Sequence[Shape] = SHAPES,
) -> Model:
    """Returns a copy of a model that is fast on the CPU; the model itself does not change.

    The copy is called like the model and returns the same outputs, rounded to `dtype`; hidden states of padding are
    zero. It has no gradients. Its attribute `optimizations` lists the changes. `save_pretrained` saves it as it is,
    and `from_pretrained` loads it faster than the model, ready to run (`ultrafastbert.inference.saved`).

    What "auto" leaves open is chosen by measurement: the fastest arithmetic on this machine whose outputs are near
    enough to those in float32 (`ultrafastbert.inference.arithmetic`). The first measurement of a size of model takes
    some seconds; its times are kept in a file.

    Args:
        model: the encoder or one of its heads, on the CPU; or a `SentenceTransformer` (any `nn.Sequential`) with one
            of them inside, which is optimised in the copy.
        dtype: of weights and products, `torch.float32` or `torch.bfloat16` (or their names), or "auto".
        int8: whether the linear layers inside the encoder multiply in int8: the projections of attention, and those of
            dense feedforward layers. Weights are rounded by output, tokens at each call. Trees are not rounded. "auto"
            may be True if the processor has instructions for it (AVX-512 VNNI, AVX VNNI or AMX); without them, True
            rounds the weights only.
        verbose: print the changes to standard error.
        tolerance: largest error of what "auto" may choose: the norm of the difference between last hidden states,
            relative to their norm. If `dtype` or `int8` allow nothing so exact, the most exact is used.
        shapes: that are timed: sequences and tokens in each.

    Raises:
        TypeError: `model` is not a model of this package, or has adapters (merge them first).
        ValueError: the model is not on the CPU or is already optimised, or `dtype`, `int8`, `tolerance` or `shapes`
            has another value.
        RuntimeError: `int8` is True, but this build of PyTorch has no oneDNN.
    """
    if isinstance(model, nn.Sequential):
        inside = [module for module in model.modules() if isinstance(module, UltraFastBertPreTrainedModel)]
        if inside:  # the first one has the others, if any, inside
            optimized = optimize_for_inference(inside[0], dtype, int8, verbose, tolerance, shapes)
            return copy.deepcopy(model, {id(inside[0]): optimized}).eval()
    if not isinstance(model, UltraFastBertPreTrainedModel) or getattr(model, "_hf_peft_config_loaded", False):
        raise TypeError(
            f"model is a {type(model).__name__}; it should be a model of ultrafastbert without adapters "
            "(for a model with adapters, pass the result of its merge_and_unload())"
        )
    if model.device.type != "cpu":
        raise ValueError(f"model is on {model.device}; it should be on cpu, because only CPUs are supported")
    if hasattr(model, "optimizations"):
        raise ValueError("model is already optimised; optimise the original model")
    candidates = _candidates(dtype, int8)
    check("tolerance", tolerance, NOT_NEGATIVE)
    check("shapes", shapes, Rule(_are_shapes, "pairs of positive integers, at least one"))
    arithmetic, reason = candidates[0], ""
    if len(candidates) > 1:
        encoder = cast(UltraFastBertModel, model.base_model)
        arithmetic, reason = choose(encoder, candidates, _optimize, tolerance, shapes, verbose)
    optimized = _optimize(model, arithmetic)
    if reason:
        optimized.optimizations = (reason, *optimized.optimizations)  # pyright: ignore
    if verbose:
        print(f"optimize_for_inference: {'; '.join(cast(tuple[str, ...], optimized.optimizations))}", file=sys.stderr)
    return cast(Model, optimized)


def _candidates(dtype: torch.dtype | str, int8: bool | str) -> list[Arithmetic]:
    """What the arguments allow and this machine can do, the most exact first."""
    check("dtype", dtype, one_of("auto", *DTYPES, *DTYPES.values()))
    check("int8", int8, one_of(True, False, "auto"))
    if int8 is True and not _has_onednn():
        raise RuntimeError("int8=True needs oneDNN, which this build of PyTorch does not have")
    dtypes = list(DTYPES.values()) if dtype == "auto" else [DTYPES[dtype] if isinstance(dtype, str) else dtype]
    can_round = native.available() and _has_onednn()
    if int8 == "auto":
        roundings = [False, True] if can_round and multiplies_int8() else [False]
    else:
        roundings = [bool(int8) and can_round]
    return [Arithmetic(dtype, rounding) for dtype in dtypes for rounding in roundings]


def _are_shapes(shapes: Any) -> bool:
    return len(shapes) > 0 and all(
        len(shape) == 2 and all(type(size) is int and size > 0 for size in shape) for shape in shapes
    )


def _optimize(model: UltraFastBertPreTrainedModel, arithmetic: Arithmetic) -> UltraFastBertPreTrainedModel:
    """An optimised copy that computes in this arithmetic."""
    native_operators = native.available()
    linear_class = _linear_class(arithmetic.int8) if native_operators else None
    optimized = _copy(model, arithmetic.dtype, linear_class)
    OptimizedLoader(OptimizedConfig(arithmetic.dtype, linear_class, native_operators)).attach(optimized)
    return optimized


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and "onednn" in torch.backends.quantized.supported_engines


def _linear_class(int8: bool) -> type[PackedLinear] | None:
    if not torch.backends.mkldnn.is_available():
        return None
    return Int8Linear if int8 else PackedLinear


def _copy(
    model: UltraFastBertPreTrainedModel, dtype: torch.dtype, linear_class: type[PackedLinear] | None
) -> UltraFastBertPreTrainedModel:
    """A copy in another dtype, except for the norms, and with packed linear layers; no tensor is copied twice."""
    encoder = cast(UltraFastBertModel, model.base_model)
    replaced = {linear: linear_class.like(linear, dtype) for linear in linear_layers(encoder)} if linear_class else {}
    inside = {id(tensor) for module in replaced for tensor in module.parameters()}
    in_float32 = {id(tensor) for norm in norms_of(encoder) for tensor in norm.parameters()}
    copies: dict[int, Any] = {id(module): substitute for module, substitute in replaced.items()}  # deepcopy's memo
    for tensor in [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())]:
        if id(tensor) not in inside:
            converted = tensor.detach().to(torch.float32 if id(tensor) in in_float32 else dtype, copy=True)
            parameter = isinstance(tensor, nn.Parameter)
            copies[id(tensor)] = nn.Parameter(converted, requires_grad=False) if parameter else converted
    return copy.deepcopy(model, copies).eval()
