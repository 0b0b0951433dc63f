"""`optimize_for_inference`: copies an encoder and replaces its parts by those that are fast on this CPU."""

import copy
import sys
from typing import Any, TypeVar, cast

import torch
from torch import nn

from ultrafastbert.inference.operators import (
    Int8Linear,
    PackedLinear,
    linear_layers,
    norms_of,
)
from ultrafastbert.inference.saved import DTYPES, OptimizedConfig, OptimizedLoader
from ultrafastbert.modeling_ultrafastbert import UltraFastBertModel, UltraFastBertPreTrainedModel
from ultrafastbert.ops import native
from ultrafastbert.utils.hardware import multiplies_int8, processor_has
from ultrafastbert.utils.validation import check, one_of

Model = TypeVar("Model", bound=nn.Module)


def optimize_for_inference(
    model: Model, dtype: torch.dtype | str = "auto", int8: bool | str = "auto", verbose: bool = True
) -> Model:
    """Returns a copy of a model that is fast on the CPU; the model itself does not change.

    The copy is called like the model and returns the same outputs, rounded to `dtype`; hidden states of padding are
    zero. It has no gradients. Its attribute `optimizations` lists the changes. `save_pretrained` saves it as it is,
    and `from_pretrained` loads it faster than the model, ready to run (`ultrafastbert.inference.saved`).

    Args:
        model: the encoder or one of its heads, on the CPU; or a `SentenceTransformer` (any `nn.Sequential`) with one
            of them inside, which is optimised in the copy.
        dtype: of weights and products, `torch.float32` or `torch.bfloat16` (or their names). "auto" is bfloat16 if the
            processor has instructions for it (AVX-512 BF16 or AMX), else float32.
        int8: whether the linear layers inside the encoder multiply in int8: the projections of attention, and those of
            dense feedforward layers. Weights are rounded by output, tokens at each call. Trees are not rounded. "auto"
            is True if the processor has instructions for it (AVX-512 VNNI, AVX VNNI or AMX); without them, True rounds
            the weights only.
        verbose: print the changes to standard error.

    Raises:
        TypeError: `model` is not a model of this package, or has adapters (merge them first).
        ValueError: the model is not on the CPU or is already optimised, or `dtype` or `int8` is another value.
        RuntimeError: `int8` is True, but this build of PyTorch has no oneDNN.
    """
    if isinstance(model, nn.Sequential):
        inside = [module for module in model.modules() if isinstance(module, UltraFastBertPreTrainedModel)]
        if inside:  # the first one has the others, if any, inside
            optimized = optimize_for_inference(inside[0], dtype, int8, verbose)
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
    dtype = _choose_dtype(dtype)
    native_operators = native.available()
    int8 = native_operators and _choose_int8(int8)

    linear_class = _linear_class(int8) if native_operators else None
    optimized = _copy(model, dtype, linear_class)
    OptimizedLoader(OptimizedConfig(dtype, linear_class, native_operators)).attach(optimized)
    if verbose:
        print(f"optimize_for_inference: {'; '.join(cast(tuple[str, ...], optimized.optimizations))}", file=sys.stderr)
    return cast(Model, optimized)


def _choose_dtype(dtype: torch.dtype | str) -> torch.dtype:
    if dtype == "auto":
        return torch.bfloat16 if processor_has("avx512_bf16", "amx_bf16") else torch.float32
    check("dtype", dtype, one_of("auto", *DTYPES, *DTYPES.values()))
    return DTYPES[dtype] if isinstance(dtype, str) else dtype


def _choose_int8(int8: bool | str) -> bool:
    check("int8", int8, one_of(True, False, "auto"))
    if int8 == "auto":
        return _has_onednn() and multiplies_int8()
    if int8 and not _has_onednn():
        raise RuntimeError("int8=True needs oneDNN, which this build of PyTorch does not have")
    return bool(int8)


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
