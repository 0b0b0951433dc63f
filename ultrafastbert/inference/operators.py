"""Replacements for parts of an encoder in inference on a CPU: its linear layers, and the loop over its layers.

- Padding is removed before the first layer and restored after the last. In between, a batch is a list of tokens, and
  attention gets the offset at which each sequence begins, so sequences of different lengths cost only their tokens.
- The residual stream is in float32, whatever the layers compute in: of all roundings to bfloat16, that of the stream
  costs the most precision.
- Linear layers are oneDNN's, as PyTorch ships it, with weights packed once. In int8 each token has its own scale, so
  the result of a sequence does not depend on the rest of the batch.
- Nothing is compiled. With the operators of `ops/native` a layer is six calls, which leaves `torch.compile` little to
  fuse (docs/benchmarks/cpu.md) and saves its delay at the first call.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from ultrafastbert.modeling_ultrafastbert import Angles, UltraFastBertLayer, UltraFastBertModel
from ultrafastbert.ops import native
from ultrafastbert.utils.hardware import multiplies_int8

Norm = tuple[Tensor, Tensor, float]
"""Weight, bias and epsilon."""


class PackedLinear(nn.Module):
    """A linear layer whose weight is packed for oneDNN: `(..., in)` -> `(..., out)`.

    Only `packed` is in memory. The layout is that of this processor and of this version of oneDNN, so the layer is
    saved and pickled with its ordinary weight, from which `pack` takes milliseconds.

    Args:
        in_features, out_features: sizes.
        bias: whether there is a bias.
        dtype: of inputs, products and outputs.

    Attributes:
        weight: the ordinary weight `(out, in)` before `pack`, and None after it.
    """

    packed: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype):
        super().__init__()
        self.in_features, self.out_features, self.dtype = in_features, out_features, dtype
        self.weight = nn.Parameter(self._empty(), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype), requires_grad=False) if bias else None

    def _empty(self) -> Tensor:
        return torch.empty(self.out_features, self.in_features, dtype=self.dtype)

    @classmethod
    def like(cls, linear: nn.Linear, dtype: torch.dtype) -> Self:
        """Packs the weight of a linear layer, rounded to what this class computes with."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, dtype)
        with torch.no_grad():
            layer._round(linear.weight)
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
        layer.pack()
        return layer

    def _round(self, weight: Tensor) -> None:
        assert self.weight is not None
        self.weight.copy_(weight)

    def pack(self) -> None:
        """Packs `weight`, and drops it."""
        assert self.weight is not None
        self.packed = self._pack(self.weight.detach())  # not a parameter: PyTorch cannot read this layout
        self.weight = None

    def _pack(self, weight: Tensor) -> Tensor:
        if not self._can_pack():
            return weight
        tokens = 128  # oneDNN chooses the layout for this number; it works for all
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), tokens)

    def _can_pack(self) -> bool:
        """Whether oneDNN multiplies in this dtype here; otherwise PyTorch does, from the ordinary weight."""
        return self.dtype is not torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()

    def unpack(self) -> Tensor:
        """The ordinary weight `(out, in)`, the same to the last bit as before `pack`."""
        return self.packed.to_dense() if self.packed.is_mkldnn else self.packed

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` -> `(..., out)`."""
        if not self.packed.is_mkldnn:
            return nn.functional.linear(x, self.packed, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")

    def extra_repr(self) -> str:
        """The sizes and the dtype, for `print(model)`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, dtype={self.dtype}"

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight is None:
            destination[f"{prefix}weight"] = self.unpack()

    def _load_from_state_dict(self, *arguments: Any) -> None:
        was_packed = self.weight is None
        if was_packed:
            self.weight = nn.Parameter(self.unpack(), requires_grad=False)
        super()._load_from_state_dict(*arguments)
        if was_packed:
            self.pack()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if state.pop("packed", None) is not None:
            state["unpacked"] = self.unpack()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        unpacked = state.pop("unpacked", None)
        super().__setstate__(state)
        if unpacked is not None:
            self.packed = self._pack(unpacked)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # it never changes


class Int8Linear(PackedLinear):
    """A `PackedLinear` that multiplies in int8, with a scale for each output of the weight and one for each token.

    On a processor without instructions for it, oneDNN's sums would overflow (16 bits). There the layer multiplies the
    same rounded weight in `dtype`.
    """

    scale: Tensor  # (out,) float32

    def _empty(self) -> Tensor:
        self.register_buffer("scale", torch.empty(self.out_features, dtype=torch.float32))
        return torch.empty(self.out_features, self.in_features, dtype=torch.int8)

    def _round(self, weight: Tensor) -> None:
        weight = weight.float()
        self.scale.copy_((weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny))
        super()._round((weight / self.scale[:, None]).round())

    def _pack(self, weight: Tensor) -> Tensor:
        self.multiplies_int8 = multiplies_int8()
        if self.multiplies_int8:
            return torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)  # (in, out)
        self.rounded = weight
        return super()._pack((weight * self.scale[:, None]).to(self.dtype))

    def unpack(self) -> Tensor:
        """The ordinary weight, int8 `(out, in)`."""
        return self.packed.to_dense().T.contiguous() if self.multiplies_int8 else self.rounded

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` -> `(..., out)`."""
        if not self.multiplies_int8:
            return super().forward(x)
        output = torch.ops.ultrafastbert.linear_int8(x, self.packed, self.scale, self.dtype)
        return output if self.bias is None else output + self.bias

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("rounded", None)  # it is the ordinary weight
        return state


class UnpaddedLayers:
    """Replaces `UltraFastBertModel.run_layers`: runs the layers without padding.

    Args:
        encoder: the encoder whose layers are run.
        dtype: of what the norms return, which the layers compute in.
    """

    def __init__(self, encoder: UltraFastBertModel, dtype: torch.dtype):
        self.encoder, self.dtype = encoder, dtype

    def __setstate__(self, state: dict[str, Any]) -> None:
        if not native.available():  # in a new process they are not loaded
            raise RuntimeError("the model needs the native operators (see the warning); optimise the original model")
        self.__dict__.update(state)

    @torch.compiler.disable
    def __call__(
        self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: Angles | None, **kwargs: Any
    ) -> Tensor:
        """`(batch, seq, hidden)` -> `(batch, seq, hidden)`, with zeros for padding."""
        if hidden_states.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("an optimised model has no gradients; use the original model")
        if self._records(kwargs) or (attention_mask is not None and attention_mask.dim() != 2):
            run_layers = UltraFastBertModel.run_layers
            return run_layers(self.encoder, hidden_states, attention_mask, position_embeddings, **kwargs)
        batch, length, hidden = hidden_states.shape
        if attention_mask is None or bool((real := attention_mask != 0).all()):
            offsets = torch.arange(batch + 1) * length
            angles = _angles_of_tokens(position_embeddings, batch)
            return self._run(hidden_states.flatten(0, 1), offsets, angles).view(hidden_states.shape)
        tokens = real.flatten().nonzero().squeeze(1)  # (tokens,) indices of real tokens in the batch
        offsets = nn.functional.pad(real.sum(dim=1).cumsum(dim=0), (1, 0))
        angles = [table[tokens] for table in _angles_of_tokens(position_embeddings, batch)]
        output = self._run(hidden_states.flatten(0, 1)[tokens], offsets, angles)
        return output.new_zeros(batch * length, hidden).index_copy_(0, tokens, output).view(hidden_states.shape)

    def _records(self, kwargs: dict[str, Any]) -> bool:
        """Whether the caller asks for outputs that only the ordinary layers can record."""
        config = self.encoder.config
        wanted = ("output_hidden_states", "output_attentions")
        return any(kwargs.get(name) or (name not in kwargs and getattr(config, name, False)) for name in wanted)

    @torch.no_grad()
    def _run(self, tokens: Tensor, offsets: Tensor, angles: list[Tensor]) -> Tensor:
        """`(tokens, hidden)` of sequences that begin at `offsets` (sequences + 1,) -> their final norm.

        `angles` are the cosines and sines of rotary positions, each `(tokens, head_dim / 2)`; empty without them.
        """
        heads = self.encoder.config.num_attention_heads
        norms = [(norm.weight, norm.bias, norm.eps) for norm in norms_of(self.encoder)]
        stream = Stream(tokens.to(torch.float32, copy=True), norms, self.encoder.final_norm is None, self.dtype)
        x = stream.begin()
        for layer in cast(Iterable[UltraFastBertLayer], self.encoder.layers):
            qkv = layer.attention.qkv_proj(x)
            if angles:
                torch.ops.ultrafastbert.rotate_(qkv, *angles, heads)
            x = stream.add(layer.attention.o_proj(torch.ops.ultrafastbert.attention(qkv, offsets, heads)))
            if layer.has_feedforward:
                x = stream.add(layer.feed_forward(x))
        return x


class Stream:
    """The residual stream of pre-norm or post-norm layers, in float32.

    Args:
        values: `(tokens, hidden)`, float32; pre-norm layers change them in place.
        norms: in the order of their use.
        norms_after: whether the stream is the output of the last norm (post-norm) or the sum of updates (pre-norm).
        dtype: of what `begin` and `add` return, and of updates.
    """

    def __init__(self, values: Tensor, norms: Sequence[Norm], norms_after: bool, dtype: torch.dtype):
        self.values, self.norms, self.norms_after, self.dtype = values, iter(norms), norms_after, dtype

    def begin(self) -> Tensor:
        """The input of the first layer, `(tokens, hidden)`."""
        if self.norms_after:
            return self.values.to(self.dtype)
        return torch.ops.ultrafastbert.add_norm(self.values, None, *next(self.norms), self.dtype)

    def add(self, update: Tensor) -> Tensor:
        """Adds an update `(tokens, hidden)` and returns the next norm."""
        add_norm = torch.ops.ultrafastbert.add_norm
        if not self.norms_after:
            return add_norm(self.values, update, *next(self.norms), self.dtype)
        self.values = add_norm(self.values, update.float(), *next(self.norms), torch.float32)
        return self.values.to(self.dtype)


def linear_layers(encoder: UltraFastBertModel) -> list[nn.Linear]:
    """The linear layers inside the layers of an encoder, which are packed."""
    return [module for module in encoder.layers.modules() if isinstance(module, nn.Linear)]


def norms_of(encoder: UltraFastBertModel) -> list[nn.LayerNorm]:
    """The norms of the layers in the order of their use, then the final norm if there is one; float32 if optimised."""
    modules = (*encoder.layers.modules(), encoder.final_norm)
    return [module for module in modules if isinstance(module, nn.LayerNorm)]


def _angles_of_tokens(position_embeddings: Angles | None, batch: int) -> list[Tensor]:
    """Cosines and sines `(batch or 1, seq, head_dim)` -> each `(batch * seq, head_dim / 2)`."""
    if position_embeddings is None:
        return []
    return [table[..., : table.shape[-1] // 2].expand(batch, -1, -1).flatten(0, 1) for table in position_embeddings]
