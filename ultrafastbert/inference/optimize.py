"""`optimize_for_inference`: everything that makes an encoder fast on a CPU, in one call.

What is notable:
- padding is dropped before the first layer and put back after the last. In between, a batch is a list of tokens, and
  attention is told where each text begins: texts of mixed lengths cost what their tokens cost;
- what is added up from layer to layer stays in float32, whatever the layers compute in: of all roundings to bfloat16
  these do the most harm;
- linear layers are oneDNN's, as PyTorch ships it, with weights packed once. In int8 each token is rounded by a scale
  of its own, so that a text's result does not depend on what else is in the batch;
- nothing is compiled. With the operators of `ops/native.cpp` a layer is six calls, and `torch.compile` had little left
  to fuse (docs/benchmarks/cpu.md), for a wait at the first call.
"""

import copy
import sys

import torch
from torch import nn

from ultrafastbert.modeling_ultrafastbert import UltraFastBertModel, UltraFastBertPreTrainedModel
from ultrafastbert.ops import native

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NOT_SAVED = "an optimised model cannot be saved; save the model it was made from, and optimise it after loading"


def optimize_for_inference(
    model: UltraFastBertPreTrainedModel,
    dtype: torch.dtype | str = "auto",
    int8: bool | str = "auto",
    verbose: bool = True,
) -> UltraFastBertPreTrainedModel:
    """A copy of a model, made fast on the CPU; the model itself stays as it is.

    The copy is called as the model is and returns the same outputs, rounded to `dtype`, with zeros in place of hidden
    states of padding. It is for inference: it has no gradients and cannot be saved. `model.optimizations` lists what
    was done.

    Args:
        model: the encoder or one of its heads, on the CPU.
        dtype: of weights and products, `torch.float32` or `torch.bfloat16` (or their names). "auto" is bfloat16 where
            the processor multiplies it (AVX-512 BF16 or AMX), else float32.
        int8: whether the linear layers inside the encoder, which are the attention's projections and those of dense
            feedforward layers, multiply in 8 bits: weights rounded by output, tokens on the fly. "auto" is where the
            processor has instructions for it (AVX-512 VNNI, AVX VNNI or AMX). Trees are not rounded.
        verbose: print to standard error what was done.

    Raises:
        TypeError: not a model of this package (merge adapters first).
        ValueError: a model elsewhere than on the CPU, one already optimised, or another dtype.
        RuntimeError: `int8=True` where PyTorch has no oneDNN.
    """
    if not isinstance(model, UltraFastBertPreTrainedModel):
        raise TypeError(
            f"model is a {type(model).__name__}; it should be a model of ultrafastbert "
            "(of one with adapters, what merge_and_unload() returns)"
        )
    if model.device.type != "cpu":
        raise ValueError(f"model is on {model.device}; it should be on cpu, for which it is to be made fast")
    if hasattr(model, "optimizations"):
        raise ValueError("model is already optimised; optimise the one it was made from")
    dtype = _choose_dtype(dtype)
    native_operators = native.available()
    int8 = native_operators and _choose_int8(int8)

    packed = _packed_linear_layers(model.base_model, dtype, int8) if native_operators else {}
    layers = model.base_model.layers
    norms = [_float_norm(norm) for layer in layers for norm in (layer.attention_norm, layer.feedforward_norm)]
    norms.append(_float_norm(model.base_model.final_norm))

    model = _copy(model, dtype, packed)
    done = [f"weights in {str(dtype).removeprefix('torch.')}"]
    if native_operators:
        model.base_model.run_layers = RunLayers(model.base_model, norms, dtype)
        done += [
            f"{len(packed)} linear layers packed for oneDNN{', multiplying in int8' if int8 else ''}",
            "padding dropped, attention, residuals and norms by native operators, residuals in float32",
        ]
    else:
        done += ["no native operators (see the warning): layers, padding and attention as they were"]
    model.optimizations = tuple(done)
    model.register_state_dict_pre_hook(_refuse_to_save)
    if verbose:
        print(f"optimize_for_inference: {'; '.join(done)}", file=sys.stderr)
    return model


def _choose_dtype(dtype):
    if dtype == "auto":
        return torch.bfloat16 if _processor_has("avx512_bf16", "amx_bf16") else torch.float32
    dtype = DTYPES.get(dtype, dtype)
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype is {dtype!r}; it should be float32, bfloat16 or 'auto'")
    return dtype


def _choose_int8(int8):
    if int8 not in (True, False, "auto"):
        raise ValueError(f"int8 is {int8!r}; it should be True, False or 'auto'")
    if int8 == "auto":
        return _has_onednn() and _processor_has("avx512_vnni", "avx_vnni", "amx_int8")
    if int8 and not _has_onednn():
        raise RuntimeError("int8=True needs oneDNN, which this build of PyTorch does not have")
    return int8


def _has_onednn():
    return torch.backends.mkldnn.is_available() and "onednn" in torch.backends.quantized.supported_engines


def _processor_has(*features):
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(feature, False) for feature in features)


def _float_norm(norm):
    return norm.weight.detach().float().clone(), norm.bias.detach().float().clone(), norm.eps


def _refuse_to_save(*_):
    raise RuntimeError(NOT_SAVED)


def _copy(model, dtype, replaced):
    """A copy in another dtype and with other modules in the place of some: nothing is copied to be thrown away."""
    tensors = [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())]
    inside = {id(tensor) for module in replaced for tensor in module.parameters()}
    copies = {id(module): substitute for module, substitute in replaced.items()}  # what deepcopy takes as done
    for tensor in tensors:
        if id(tensor) not in inside:
            converted = tensor.detach().to(dtype, copy=True)
            parameter = isinstance(tensor, nn.Parameter)
            copies[id(tensor)] = nn.Parameter(converted, requires_grad=False) if parameter else converted
    return copy.deepcopy(model, copies).eval()


# linear layers


def _packed_linear_layers(encoder, dtype, int8):
    """What takes the place of each linear layer inside the encoder's layers, by that layer."""
    if not torch.backends.mkldnn.is_available():
        return {}
    packed = Int8Linear if int8 else PackedLinear
    linear_layers = [module for module in encoder.layers.modules() if isinstance(module, nn.Linear)]
    return {linear: packed(linear.weight.detach(), dtype) for linear in linear_layers}


class PackedLinear(nn.Module):
    """A linear layer without bias whose weight is laid out for oneDNN: `(..., in)` -> `(..., out)`."""

    def __init__(self, weight: torch.Tensor, dtype: torch.dtype):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = dtype
        self.packed = self._pack(weight)  # opaque to PyTorch: not a parameter

    def _pack(self, weight):
        tokens = 128  # for which the layout is chosen; it serves all
        return torch.ops.mkldnn._reorder_linear_weight(weight.to(self.dtype), tokens)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, dtype={self.dtype}"

    def __deepcopy__(self, memo):
        return self  # it never changes

    def __reduce_ex__(self, protocol):
        raise RuntimeError(NOT_SAVED)


class Int8Linear(PackedLinear):
    """The same in 8 bits: a scale for each output of the weight, and one for each token."""

    def _pack(self, weight):
        weight = weight.float()
        self.scale = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)  # (out,)
        rounded = (weight / self.scale[:, None]).round().to(torch.int8)
        return torch.ops.onednn.qlinear_prepack(rounded, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.ultrafastbert.linear_int8(x, self.packed, self.scale, self.dtype)


# the layers, over tokens


class RunLayers:
    """Takes the place of `UltraFastBertModel.run_layers`."""

    def __init__(self, encoder: UltraFastBertModel, norms: list, dtype: torch.dtype):
        self.encoder, self.norms, self.dtype = encoder, norms, dtype

    @torch.compiler.disable
    def __call__(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs) -> torch.Tensor:
        if hidden_states.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("an optimised model has no gradients; take the one it was made from")
        if self._watched(kwargs) or (attention_mask is not None and attention_mask.dim() != 2):
            return UltraFastBertModel.run_layers(self.encoder, hidden_states, attention_mask, **kwargs)
        batch, length, hidden = hidden_states.shape
        if attention_mask is None or bool((real := attention_mask != 0).all()):
            offsets = torch.arange(batch + 1) * length
            return self._run(hidden_states.flatten(0, 1), offsets).view(hidden_states.shape)
        tokens = real.flatten().nonzero().squeeze(1)  # (tokens,) where in the batch they are
        offsets = nn.functional.pad(real.sum(dim=1).cumsum(dim=0), (1, 0))
        output = self._run(hidden_states.flatten(0, 1)[tokens], offsets)
        return output.new_zeros(batch * length, hidden).index_copy_(0, tokens, output).view(hidden_states.shape)

    def _watched(self, kwargs):
        """Whether the caller wants to see what only the ordinary layers show."""
        config = self.encoder.config
        wanted = ("output_hidden_states", "output_attentions")
        return any(kwargs.get(name) or (name not in kwargs and getattr(config, name, False)) for name in wanted)

    @torch.no_grad()
    def _run(self, tokens: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """`(tokens, hidden)` of texts that begin at `offsets` (texts + 1,) -> the final norm of them."""
        operators = torch.ops.ultrafastbert
        heads = self.encoder.config.num_attention_heads
        stream = tokens.to(torch.float32, copy=True)
        norms = iter(self.norms)
        x = operators.add_norm(stream, None, *next(norms), self.dtype)
        for layer in self.encoder.layers:
            attended = operators.attention(layer.attention.qkv_proj(x), offsets, heads)
            x = operators.add_norm(stream, layer.attention.o_proj(attended), *next(norms), self.dtype)
            x = operators.add_norm(stream, layer.feedforward(x), *next(norms), self.dtype)
        return x
