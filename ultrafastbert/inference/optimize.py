"""`optimize_for_inference`: copies an encoder and replaces its parts by those that are fast on this CPU."""

import copy
import sys
from typing import Any, TypeVar, cast

import torch
from torch import nn

from ultrafastbert.inference.operators import Int8Linear, PackedLinear, UnpaddedLayers, refuse_to_save
from ultrafastbert.modeling_ultrafastbert import UltraFastBertModel, UltraFastBertPreTrainedModel
from ultrafastbert.ops import native
from ultrafastbert.utils.hardware import multiplies_int8, processor_has
from ultrafastbert.utils.validation import check, one_of

Model = TypeVar("Model", bound=UltraFastBertPreTrainedModel)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def optimize_for_inference(
    model: Model, dtype: torch.dtype | str = "auto", int8: bool | str = "auto", verbose: bool = True
) -> Model:
    """Returns a copy of a model that is fast on the CPU; the model itself does not change.

    The copy is called like the model and returns the same outputs, rounded to `dtype`; hidden states of padding are
    zero. It has no gradients and cannot be saved. Its attribute `optimizations` lists the changes.

    Args:
        model: the encoder or one of its heads, on the CPU.
        dtype: of weights and products, `torch.float32` or `torch.bfloat16` (or their names). "auto" is bfloat16 if the
            processor has instructions for it (AVX-512 BF16 or AMX), else float32.
        int8: whether the linear layers inside the encoder multiply in int8: the projections of attention, and those of
            dense feedforward layers. Weights are rounded by output, tokens at each call. Trees are not rounded. "auto"
            is True if the processor has instructions for it (AVX-512 VNNI, AVX VNNI or AMX).
        verbose: print the changes to standard error.

    Raises:
        TypeError: `model` is not a model of this package (merge adapters first).
        ValueError: the model is not on the CPU or is already optimised, or `dtype` or `int8` is another value.
        RuntimeError: `int8` is True, but this build of PyTorch has no oneDNN.
    """
    if not isinstance(model, UltraFastBertPreTrainedModel):
        raise TypeError(
            f"model is a {type(model).__name__}; it should be a model of ultrafastbert "
            "(for a model with adapters, pass the result of its merge_and_unload())"
        )
    if model.device.type != "cpu":
        raise ValueError(f"model is on {model.device}; it should be on cpu, because only CPUs are supported")
    if hasattr(model, "optimizations"):
        raise ValueError("model is already optimised; optimise the original model")
    dtype = _choose_dtype(dtype)
    native_operators = native.available()
    int8 = native_operators and _choose_int8(int8)

    encoder = cast(UltraFastBertModel, model.base_model)
    norms = [  # in order of use, and not those of the copy, which are rounded
        (norm.weight.detach().float().clone(), norm.bias.detach().float().clone(), norm.eps)
        for norm in (*encoder.layers.modules(), encoder.final_norm)  # post-norm encoders have no final norm
        if isinstance(norm, nn.LayerNorm)
    ]
    packed = _packed_linear_layers(encoder, dtype, int8) if native_operators else {}
    optimized = _copy(model, dtype, packed)
    done = [f"weights in {str(dtype).removeprefix('torch.')}"]
    if native_operators:
        encoder = cast(UltraFastBertModel, optimized.base_model)
        encoder.run_layers = UnpaddedLayers(encoder, norms, dtype)  # pyright: ignore[reportAttributeAccessIssue]
        if packed:
            done.append(f"{len(packed)} linear layers packed for oneDNN{', multiplying in int8' if int8 else ''}")
        done += [
            "padding removed, attention, residuals and norms computed by native operators, residuals in float32",
        ]
    else:
        done += ["no native operators (see the warning), so layers, padding and attention did not change"]
    optimized.optimizations = tuple(done)  # pyright: ignore[reportArgumentType]
    optimized.register_state_dict_pre_hook(refuse_to_save)
    if verbose:
        print(f"optimize_for_inference: {'; '.join(done)}", file=sys.stderr)
    return optimized


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


def _packed_linear_layers(encoder: UltraFastBertModel, dtype: torch.dtype, int8: bool) -> dict[nn.Module, nn.Module]:
    """The linear layers inside the encoder's layers, and what replaces each; {} if oneDNN cannot pack them."""
    if not torch.backends.mkldnn.is_available():
        return {}
    if not int8 and dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return {}
    packed = Int8Linear if int8 else PackedLinear
    linear_layers = [module for module in encoder.layers.modules() if isinstance(module, nn.Linear)]
    return {
        linear: packed(linear.weight.detach(), None if linear.bias is None else linear.bias.detach(), dtype)
        for linear in linear_layers
    }


def _copy(model: Model, dtype: torch.dtype, replaced: dict[nn.Module, nn.Module]) -> Model:
    """A copy in another dtype and with some modules replaced, whose tensors are never copied."""
    tensors = [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())]
    inside = {id(tensor) for module in replaced for tensor in module.parameters()}
    copies: dict[int, Any] = {id(module): substitute for module, substitute in replaced.items()}  # deepcopy's memo
    for tensor in tensors:
        if id(tensor) not in inside:
            converted = tensor.detach().to(dtype, copy=True)
            parameter = isinstance(tensor, nn.Parameter)
            copies[id(tensor)] = nn.Parameter(converted, requires_grad=False) if parameter else converted
    return copy.deepcopy(model, copies).eval()
