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

import functools
from collections.abc import Iterable
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from ultrafastbert.modeling_ultrafastbert import Angles, UltraFastBertLayer, UltraFastBertModel

Norm = tuple[Tensor, Tensor, float]
"""Weight, bias and epsilon."""


def refuse_to_save(*_: Any) -> NoReturn:
    """Raises the error for a model that is saved or pickled after it was optimised."""
    raise RuntimeError("an optimised model cannot be saved; save the original model, and optimise it after loading")


class PackedLinear(nn.Module):
    """A linear layer whose weight is packed for oneDNN: `(..., in)` -> `(..., out)`.

    Args:
        weight: `(out, in)`.
        bias: `(out,)`, or None.
        dtype: of inputs, products and outputs.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = dtype
        self.bias = None if bias is None else bias.to(dtype, copy=True)
        self.packed = self._pack(weight)  # not a parameter: PyTorch cannot read this layout

    def _pack(self, weight: Tensor) -> Tensor:
        tokens = 128  # oneDNN chooses the layout for this number; it works for all
        return torch.ops.mkldnn._reorder_linear_weight(weight.to(self.dtype), tokens)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` -> `(..., out)`."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")

    def extra_repr(self) -> str:
        """The sizes and the dtype, for `print(model)`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, dtype={self.dtype}"

    def __deepcopy__(self, memo: dict[int, Any]) -> "PackedLinear":
        return self  # it never changes

    __reduce_ex__ = refuse_to_save


@functools.cache
def int8_levels() -> int:
    """The largest int8 weight whose products oneDNN adds exactly on this processor.

    It is 127, or 63 without VNNI or AMX: there, pairs of products are added in 16 bits, and larger weights overflow
    without an error.
    """
    one_token, one_output = torch.full((1, 64), 10.0), torch.ones(1)
    largest = torch.ops.onednn.qlinear_prepack(torch.full((1, 64), 127, dtype=torch.int8), None)
    product = torch.ops.ultrafastbert.linear_int8(one_token, largest, one_output, torch.float32)
    return 127 if abs(product.item() - 10 * 64 * 127) < 1 else 63


class Int8Linear(PackedLinear):
    """A `PackedLinear` that multiplies in int8, with a scale for each output of the weight and one for each token.

    Processors without instructions for it add pairs of products in 16 bits, which overflow unless weights have 7 bits.
    """

    def _pack(self, weight: Tensor) -> Tensor:
        weight = weight.float()
        self.scale = (weight.abs().amax(dim=1) / int8_levels()).clamp(min=torch.finfo(torch.float32).tiny)  # (out,)
        rounded = (weight / self.scale[:, None]).round().to(torch.int8)
        return torch.ops.onednn.qlinear_prepack(rounded, None)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` -> `(..., out)`."""
        output = torch.ops.ultrafastbert.linear_int8(x, self.packed, self.scale, self.dtype)
        return output if self.bias is None else output.add_(self.bias)


class UnpaddedLayers:
    """Replaces `UltraFastBertModel.run_layers`: runs the layers without padding.

    Args:
        encoder: the encoder whose layers are run.
        norms: the norms of the layers in the order of their use, then the final norm if there is one, in float32.
        dtype: of what the norms return, which the layers compute in.
    """

    def __init__(self, encoder: UltraFastBertModel, norms: list[Norm], dtype: torch.dtype):
        self.encoder, self.norms, self.dtype = encoder, norms, dtype

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
        stream = Stream(tokens.to(torch.float32, copy=True), self.norms, self.encoder.final_norm is None, self.dtype)
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

    def __init__(self, values: Tensor, norms: list[Norm], norms_after: bool, dtype: torch.dtype):
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


def _angles_of_tokens(position_embeddings: Angles | None, batch: int) -> list[Tensor]:
    """Cosines and sines `(batch or 1, seq, head_dim)` -> each `(batch * seq, head_dim / 2)`."""
    if position_embeddings is None:
        return []
    return [table[..., : table.shape[-1] // 2].expand(batch, -1, -1).flatten(0, 1) for table in position_embeddings]
