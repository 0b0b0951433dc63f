"""UltraFastBERT: the encoder of crammedBERT with fast feedforward trees, and its heads.

- The encoder is that of crammedBERT (Geiping & Goldstein, arXiv 2212.14034): token embeddings plus scaled sinusoidal
  positions, pre-norm layers, no biases in attention and dense projections, and a final norm. The masked-LM decoder is
  tied to the token embedding and has no head transform.
- The feedforward layers are fast feedforward trees (Belcak & Wattenhofer, arXiv 2311.10770). For
  comparison, they can be dense, or there can be none.
- The masked-LM head optionally takes the positions to predict and computes logits only there. Shapes are then static,
  and the decoder costs a quarter when a quarter of the tokens is masked.
- Padding on either side does not change the outputs of real tokens: positions are counted from the first real token of
  a sequence.
- Options of the configuration turn it into an encoder of the BERT family, of which `ultrafastbert convert` makes use:
  post-norm layers, learned positions, token types, biases, factorised embeddings, a head transform.
"""
# ruff: noqa: D417 - arguments that the `forward` of a head does not document are those of `UltraFastBertModel.forward`.

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ultrafastbert.configuration_ultrafastbert import UltraFastBertConfig
from ultrafastbert.layers.fff import FFF
from ultrafastbert.layers.hard import HardFFF
from ultrafastbert.layers.memory import check_memory
from ultrafastbert.ops.cross_entropy import IGNORED, cross_entropy
from ultrafastbert.ops.rotary import rotate_queries_and_keys, rotates
from ultrafastbert.utils.inputs import check_inputs, check_labels, check_values, select_inputs
from ultrafastbert.utils.sizes import DenseSize, NoSize, Size, parse_size

Angles = tuple[Tensor, Tensor]
"""The cosines and sines of rotary positions, each `(batch or 1, seq, head_dim)`, float32."""


def sinusoids(length: int, width: int) -> Tensor:
    """Sinusoidal positions (arXiv 1706.03762, section 3.5): `(length, width)`, float32, on the CPU.

    They are float32 whatever the default dtype is, because the angles of late positions need the precision.
    """
    positions = torch.arange(length, dtype=torch.float32, device="cpu")[:, None]
    pairs = torch.arange(0, width, 2, dtype=torch.float32, device="cpu")
    angles = positions * torch.exp(pairs * (-math.log(10000.0) / width))  # (length, width / 2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def first_real_token(attention_mask: Tensor) -> Tensor:
    """The position of each sequence's first real token: `(batch, seq)` -> `(batch,)` int64; 0 if all is padding."""
    return (attention_mask != 0).int().argmax(dim=-1)


def rotary_positions(position_ids: Tensor, width: int, theta: float) -> Angles:
    """The angles of rotary positions with base `theta`, for heads of `width` (arXiv 2104.09864, section 3.2.2).

    `(...)` int64 -> `(..., width)` for cosines and sines; the angle of pair i is in columns i and width / 2 + i.
    """
    pairs = torch.arange(0, width, 2, dtype=torch.float32, device=position_ids.device)
    frequencies = torch.exp(pairs * (-math.log(theta) / width))  # (width / 2,)
    angles = position_ids[..., None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotates the pairs (i, width / 2 + i) of queries or keys `(..., width)`; computes in the dtype of `x`."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine.to(x.dtype) + torch.cat((-second, first), dim=-1) * sine.to(x.dtype)


class UltraFastBertEmbeddings(nn.Module):
    """Embeddings of tokens, of their types and positions where these are used, then norm and dropout.

    Sinusoidal positions are multiplied by a learned scale. Embeddings narrower than the encoder are projected.
    """

    positions: Tensor

    def __init__(self, config: UltraFastBertConfig):
        super().__init__()
        width = config.embedding_size or config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.type_embeddings = nn.Embedding(config.type_vocab_size, width) if config.type_vocab_size else None
        self.adds_positions = config.position_embedding != "rotary"
        self.has_sinusoids = config.position_embedding == "sinusoidal"
        if self.has_sinusoids:
            self.position_scale = nn.Parameter(torch.full((1,), config.hidden_size**-0.5))
            table = sinusoids(config.max_position_embeddings, width)
            # Not saved: `_init_weights` recomputes it when a model is loaded on the meta device.
            self.register_buffer("positions", table.to(self.position_scale), persistent=False)
        elif self.adds_positions:
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.projection = None if config.embedding_size is None else nn.Linear(width, config.hidden_size)

    def forward(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        position_ids: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """`(batch, seq)` ids or `(batch, seq, embedding)`, `(batch or 1, seq)` -> `(batch, seq, hidden)`.

        Token types, `(batch or 1, seq)`, are 0 by default.
        """
        if inputs_embeds is None:
            embeddings = self.word_embeddings(input_ids)
        else:
            embeddings = inputs_embeds.to(self.norm.weight.dtype)
        if self.type_embeddings is not None:
            types = torch.zeros_like(position_ids) if token_type_ids is None else token_type_ids
            embeddings = embeddings + self.type_embeddings(types)
        if self.has_sinusoids:
            positions = nn.functional.embedding(position_ids, self.positions)  # (batch or 1, seq, embedding)
            embeddings = embeddings + self.position_scale * positions
        elif self.adds_positions:
            embeddings = embeddings + self.position_embeddings(position_ids)
        embeddings = self.dropout(self.norm(embeddings))
        return embeddings if self.projection is None else self.projection(embeddings)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention in plain PyTorch, which can return its weights; `kwargs` of other attention functions are ignored.

    Queries, keys and values are `(batch, heads, seq, head_dim)`. A mask, `(batch or 1, heads or 1, seq, seq)`, is
    added to the scores. Returns the output `(batch, seq, heads, head_dim)` and the weights `(batch, heads, seq, seq)`.
    """
    # At least float32: half-precision scores plus a mask of the lowest number could overflow to -inf, and the softmax
    # of a row of -inf is NaN.
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = (query @ key.transpose(2, 3)).to(dtype) * scaling  # (batch, heads, seq, seq)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights  # (batch, seq, heads, head_dim)


class UltraFastBertAttention(nn.Module):
    """Multi-head self-attention over all tokens."""

    is_causal = False

    def __init__(self, config: UltraFastBertConfig):
        super().__init__()
        self.config = config
        self.heads, self.head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        # One matrix for query, key and value: rows [q; k; v], each (heads, head_dim).
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.projection_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.projection_bias)
        self.o_proj.starts_at_zero = config.zero_init_outputs  # pyright: ignore[reportArgumentType]

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: Angles | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """`(batch, seq, hidden)` -> the same, and the weights if the attention function returns them."""
        qkv = self.qkv_proj(hidden_states).unflatten(-1, (3, self.heads, self.head_dim))
        if self.training and qkv.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # The gradient of PyTorch's fused attention takes twice as long in bf16 as in float32 there.
            with torch.autocast("cpu", enabled=False):
                output, weights = self._attend(qkv.float(), attention_mask, position_embeddings, **kwargs)
        else:
            output, weights = self._attend(qkv, attention_mask, position_embeddings, **kwargs)
        return self.o_proj(output.flatten(2)), weights

    def _attend(
        self, qkv: Tensor, attention_mask: Tensor | None, position_embeddings: Angles | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """`(batch, seq, 3, heads, head_dim)` -> the output `(batch, seq, heads, head_dim)`, and weights or None."""
        if position_embeddings is not None and rotates(qkv):
            qkv, position_embeddings = rotate_queries_and_keys(qkv, *position_embeddings), None
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, seq, head_dim)
        if position_embeddings is not None:
            cosine, sine = (table.unsqueeze(1) for table in position_embeddings)  # (batch or 1, 1, seq, head_dim)
            query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation,  # pyright: ignore[reportArgumentType]
            eager_attention_forward,
        )
        if query.shape[0] == 0:  # transformers' sdpa takes no empty batches
            attend = eager_attention_forward
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        return attend(self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)


class UltraFastBertDense(nn.Module):
    """An ordinary feedforward layer of some number of neurons."""

    def __init__(self, config: UltraFastBertConfig, neurons: int):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, neurons, bias=config.projection_bias)
        self.activation = ACT2FN[config.hidden_act]
        self.down_proj = nn.Linear(neurons, config.hidden_size, bias=config.projection_bias)
        self.down_proj.starts_at_zero = config.zero_init_outputs  # pyright: ignore[reportArgumentType]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`(..., hidden)` -> `(..., hidden)`."""
        return self.down_proj(self.activation(self.up_proj(hidden_states)))


class UltraFastBertSkip(nn.Module):
    """A factor for each channel and a bias, which start at zero: what is cheap of a layer that a tree replaces."""

    def __init__(self, config: UltraFastBertConfig):
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`(..., hidden)` -> `(..., hidden)`."""
        return torch.addcmul(self.bias, hidden_states, self.factor)


def make_feedforward(config: UltraFastBertConfig, size: Size) -> nn.Module | None:
    """A feedforward layer of this size, `(..., hidden)` -> `(..., hidden)`; None for `none`."""
    if isinstance(size, NoSize):
        return None
    if isinstance(size, DenseSize):
        return UltraFastBertDense(config, size.neurons)
    if size.leaf_size is not None:
        return HardFFF(config.hidden_size, size.depth, size.leaf_size)
    return FFF(config.hidden_size, size.depth, trees=size.trees)


class UltraFastBertLayer(GradientCheckpointingLayer):
    """A transformer layer with norms before its parts, or after them."""

    def __init__(self, config: UltraFastBertConfig, size: Size):
        super().__init__()
        self.norms_after = config.norm_position == "post"
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = UltraFastBertAttention(config)
        self.has_feedforward = config.feedforward_skip or not isinstance(size, NoSize)
        # The order of parameters stays that of saved optimisers, which know them by number.
        if self.has_feedforward:
            self.feedforward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feedforward = make_feedforward(config, size)
        self.skip = UltraFastBertSkip(config) if config.feedforward_skip else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: Angles | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """`(batch, seq, hidden)` -> `(batch, seq, hidden)`."""
        hidden_states = self.attend(hidden_states, attention_mask, position_embeddings, **kwargs)
        if not self.has_feedforward:
            return hidden_states
        return self.add_update(hidden_states, self.feed_forward(self.feedforward_input(hidden_states)))

    def attend(
        self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: Angles | None, **kwargs: Any
    ) -> Tensor:
        """The first half of the layer, attention: `(batch, seq, hidden)` -> `(batch, seq, hidden)`."""
        x = hidden_states if self.norms_after else self.attention_norm(hidden_states)
        attended, _ = self.attention(x, attention_mask, position_embeddings, **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        return self.attention_norm(hidden_states) if self.norms_after else hidden_states

    def feedforward_input(self, hidden_states: Tensor) -> Tensor:
        """What the feedforward layer sees of the states after attention: `(..., hidden)` -> `(..., hidden)`."""
        return hidden_states if self.norms_after else self.feedforward_norm(hidden_states)

    def add_update(self, hidden_states: Tensor, update: Tensor) -> Tensor:
        """The output of the layer: the states after attention and what the feedforward layer adds to them."""
        hidden_states = hidden_states + self.dropout(update)
        return self.feedforward_norm(hidden_states) if self.norms_after else hidden_states

    def feed_forward(self, x: Tensor) -> Tensor:
        """The output of the feedforward layer and of the skip beside it: `(..., hidden)` -> `(..., hidden)`."""
        outputs = [part(x) for part in (self.feedforward, self.skip) if part is not None]
        return outputs[0] if len(outputs) == 1 else outputs[0] + outputs[1]


class UltraFastBertPreTrainedModel(PreTrainedModel):
    """Base class of all models: initialisation of weights, and the features of transformers that they support."""

    config: UltraFastBertConfig
    base_model_prefix = "model"
    _input_embed_layer = "word_embeddings"
    supports_gradient_checkpointing = True
    _no_split_modules = ["UltraFastBertEmbeddings", "UltraFastBertLayer"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": UltraFastBertLayer, "attentions": UltraFastBertAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear) and getattr(module, "starts_at_zero", False):
            init.zeros_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
            return
        super()._init_weights(module)  # linear layers, embeddings and norms
        if isinstance(module, UltraFastBertSkip):
            init.zeros_(module.factor)
            init.zeros_(module.bias)
        elif isinstance(module, UltraFastBertEmbeddings) and module.has_sinusoids:
            init.constant_(module.position_scale, self.config.hidden_size**-0.5)
            length, width = module.positions.shape
            init.copy_(module.positions, sinusoids(length, width))
        elif isinstance(module, FFF | HardFFF):
            # This does not overwrite loaded weights: transformers guards torch.nn.init here.
            module.reset_parameters()
            if isinstance(module, HardFFF) and self.config.zero_init_outputs:
                init.zeros_(module.leaf_weight_out)


class UltraFastBertModel(UltraFastBertPreTrainedModel):
    """The encoder: tokens in, one hidden state per token out."""

    def __init__(self, config: UltraFastBertConfig):
        check_memory(config)
        super().__init__(config)
        self.embeddings = UltraFastBertEmbeddings(config)
        # Where this file is code from the Hub, transformers may load the configuration's modules a second time, with
        # classes of their own; texts are the same to both.
        sizes = [parse_size(str(size)) for size in config.sizes_by_layer]
        self.layers = nn.ModuleList([UltraFastBertLayer(config, size) for size in sizes])
        self.final_norm = None
        if config.norm_position == "pre":
            self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Encodes a batch of token sequences.

        Args:
            input_ids: `(batch, seq)` int64.
            attention_mask: `(batch, seq)`, nonzero for real tokens and 0 for padding; None if there is no padding. A
                4-D mask, `(batch or 1, heads or 1, seq or 1, seq)`, is passed to the attention function unchanged.
            position_ids: `(batch or 1, seq)` int64; those that are added are less than `max_position_embeddings`. By
                default positions count from the first real token of a sequence, masked tokens after it included.
            inputs_embeds: `(batch, seq, embedding)`, instead of `input_ids`; converted to the dtype of the model.
            token_type_ids: `(batch or 1, seq)` int64, less than `type_vocab_size`, 0 by default. They have no effect
                if the model has no embeddings of token types.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, and options of the attention function.

        Returns:
            `last_hidden_state` `(batch, seq, hidden)`. With `output_hidden_states` also `hidden_states`: the
            embeddings, then the output of each layer, the last one after the final norm if there is one.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds` are given, an argument has a wrong shape,
                dtype or, on a CPU, value, or an added position is not less than `max_position_embeddings`. An
                optimised model raises the same errors.
        """
        hidden_states, angles = self.embed(input_ids, attention_mask, position_ids, inputs_embeds, token_type_ids)
        return BaseModelOutput(self.run_layers(hidden_states, attention_mask, angles, **kwargs))

    def embed(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> tuple[Tensor, Angles | None]:
        """The input of the first layer, `(batch, seq, hidden)`, and the angles of rotary positions; see `forward`."""
        inputs = select_inputs(input_ids, inputs_embeds)
        given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        given |= {"attention_mask": attention_mask, "position_ids": position_ids, "token_type_ids": token_type_ids}
        check_inputs(given, self.config.vocab_size, self.config.embedding_size or self.config.hidden_size)
        if position_ids is None:
            position_ids = self._default_position_ids(inputs, attention_mask)
        else:
            self._check_position_ids(position_ids)
        hidden_states = self.embeddings(input_ids, inputs_embeds, position_ids, token_type_ids)
        angles = None
        if not self.embeddings.adds_positions:
            head_dim = self.config.hidden_size // self.config.num_attention_heads
            angles = rotary_positions(position_ids, head_dim, self.config.rope_theta)
        return hidden_states, angles

    def run_layers(
        self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: Angles | None, **kwargs: Any
    ) -> Tensor:
        """The layers and the final norm, `(batch, seq, hidden)` -> `(batch, seq, hidden)`.

        `optimize_for_inference` replaces this method.
        """
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, position_embeddings, **kwargs)
        return hidden_states if self.final_norm is None else self.final_norm(hidden_states)

    def _default_position_ids(self, inputs: Tensor, attention_mask: Tensor | None) -> Tensor:
        """`(batch or 1, seq)` int64: positions counted from each sequence's first real token, 0 before it."""
        longest = self.config.max_position_embeddings
        if self.embeddings.adds_positions and inputs.shape[1] > longest:
            raise ValueError(
                f"the sequences are {inputs.shape[1]} tokens long; max_position_embeddings is {longest}, "
                "so they should be truncated to that length (truncation=True of the tokenizer)"
            )
        columns = torch.arange(inputs.shape[1], device=inputs.device)[None]  # (1, seq)
        if attention_mask is None or attention_mask.dim() != 2:
            return columns
        return (columns - first_real_token(attention_mask).to(inputs.device)[:, None]).clamp(min=0)

    def _check_position_ids(self, position_ids: Tensor) -> None:
        if not self.embeddings.adds_positions or torch.compiler.is_compiling() or position_ids.numel() == 0:
            return
        lowest, highest = position_ids.aminmax()
        if lowest < 0 or highest >= self.config.max_position_embeddings:
            raise ValueError(
                f"position_ids are in [{lowest}, {highest}]; they should be in "
                f"[0, {self.config.max_position_embeddings - 1}] (max_position_embeddings - 1)"
            )


class UltraFastBertHeadTransform(nn.Module):
    """What BERT has before its decoder: a linear layer to the width of the embeddings, activation and norm."""

    def __init__(self, config: UltraFastBertConfig):
        super().__init__()
        width = config.embedding_size or config.hidden_size
        self.dense = nn.Linear(config.hidden_size, width)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`(..., hidden)` -> `(..., embedding)`."""
        return self.norm(self.activation(self.dense(hidden_states)))


class UltraFastBertForMaskedLM(UltraFastBertPreTrainedModel):
    """The encoder with a decoder that predicts masked tokens."""

    _tied_weights_keys = {"decoder.weight": "model.embeddings.word_embeddings.weight"}

    def __init__(self, config: UltraFastBertConfig):
        super().__init__(config)
        self.model = UltraFastBertModel(config)
        self.transform = UltraFastBertHeadTransform(config) if config.head_transform else None
        width = config.embedding_size or config.hidden_size
        self.decoder = nn.Linear(width, config.vocab_size, bias=config.decoder_bias)
        self.loss_function = masked_lm_loss
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The decoder."""
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the decoder."""
        self.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        masked_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Predicts tokens; arguments not listed are those of `UltraFastBertModel.forward`.

        Args:
            labels: `(batch, seq)` int64, the tokens to predict, and -100 where the loss ignores a position.
            masked_positions: `(batch, k)` int64, the positions to predict. Logits are computed only there, and the
                loss uses the labels only there.

        Returns:
            `logits` `(batch, seq, vocab)`, or `(batch, k, vocab)` with `masked_positions`. With `labels` also the
            `loss`, the mean cross-entropy in nats, computed in float32.
        """
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        hidden_states = outputs.last_hidden_state  # (batch, seq, hidden)
        check_labels("labels", labels, tuple(hidden_states.shape[:2]))
        if masked_positions is not None:
            hidden_states, labels = _gather_columns(masked_positions, hidden_states, labels)
        logits = self.decoder(hidden_states if self.transform is None else self.transform(hidden_states))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=logits.shape[-1], **kwargs)
        return MaskedLMOutput(loss, logits, outputs.hidden_states, outputs.attentions)


def masked_lm_loss(
    logits: Tensor, labels: Tensor, vocab_size: int, num_items_in_batch: Tensor | int | None = None, **_: Any
) -> Tensor:
    """The mean cross-entropy of tokens whose label is not -100, as transformers' loss of the same arguments.

    Args:
        logits: `(..., vocab_size)`.
        labels: `(...)` int64.
        vocab_size: number of classes.
        num_items_in_batch: what the sum is divided by, when gradients of several batches are accumulated.
    """
    labels = labels.to(logits.device).flatten()
    total = cross_entropy(logits.view(-1, vocab_size), labels).sum()
    if num_items_in_batch is None:
        num_items_in_batch = (labels != IGNORED).sum()
    return total / (
        num_items_in_batch.to(total.device) if isinstance(num_items_in_batch, Tensor) else num_items_in_batch
    )


def _gather_columns(columns: Tensor, hidden_states: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The states `(batch, seq, hidden)` and the labels `(batch, seq)` at the columns `(batch, k)`."""
    if columns.dim() != 2 or columns.shape[0] != hidden_states.shape[0]:
        raise ValueError(
            f"masked_positions has shape {tuple(columns.shape)}; it should be ({hidden_states.shape[0]}, k), "
            "k positions for each sequence of the batch"
        )
    check_values("masked_positions", columns, hidden_states.shape[1], "the length of the sequences")
    index = columns[..., None].expand(-1, -1, hidden_states.shape[-1])  # (batch, k, hidden)
    return hidden_states.gather(1, index), None if labels is None else labels.gather(1, columns)


class UltraFastBertPooler(nn.Module):
    """One vector per sequence: pooling, then a hidden layer. The input of sequence classifiers."""

    def __init__(self, config: UltraFastBertConfig):
        super().__init__()
        self.pooling = config.classifier_pooling
        self.dense = nn.Linear(config.hidden_size, config.classifier_hidden_size)
        self.activation = ACT2FN[config.classifier_activation]
        self.dropout = nn.Dropout(config.classifier_dropout)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        """`(batch, seq, hidden)` and a mask `(batch, seq)` or None -> `(batch, classifier_hidden_size)`."""
        return self.dropout(self.activation(self.dense(self._pool(hidden_states, attention_mask))))

    def _pool(self, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        if attention_mask is None:
            return hidden_states[:, 0] if self.pooling == "cls" else hidden_states.mean(dim=1)
        if attention_mask.shape != hidden_states.shape[:2]:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; to classify sequences it should be "
                f"(batch, seq), here {tuple(hidden_states.shape[:2])}, because pooling ignores padding"
            )
        attention_mask = attention_mask.to(hidden_states.device)
        if self.pooling == "cls":
            sequences = torch.arange(hidden_states.shape[0], device=hidden_states.device)
            return hidden_states[sequences, first_real_token(attention_mask)]
        real = (attention_mask != 0).to(hidden_states.dtype)[..., None]  # (batch, seq, 1)
        return (hidden_states * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)  # all padding: 0


class UltraFastBertForSequenceClassification(UltraFastBertPreTrainedModel):
    """The encoder with a head that classifies sequences, or predicts numbers for them."""

    # The loss is a mean over the batch, so Trainer has to divide it by the number of accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: UltraFastBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = UltraFastBertModel(config)
        self.pooler = UltraFastBertPooler(config)
        self.classifier = nn.Linear(config.classifier_hidden_size, config.num_labels)  # pyright: ignore[reportArgumentType]
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classifies sequences; arguments not listed are those of `UltraFastBertModel.forward`.

        Args:
            labels: `(batch,)` int64 classes; `(batch,)` floats for regression of one number; or `(batch, num_labels)`
                floats for regression of several numbers and for several classes at once. `config.problem_type` selects
                one of these; if it is None, the first labels set it.

        Returns:
            `logits` `(batch, num_labels)`. With `labels` also the `loss`, the mean cross-entropy, squared error or
            binary cross-entropy, computed in float32.
        """
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.pooler(outputs.last_hidden_state, attention_mask))
        loss = None
        if labels is not None:
            batch, outputs_of_head = logits.shape
            problem, is_integer = self.config.problem_type, labels.dtype in (torch.int64, torch.int32)
            is_class = problem == "single_label_classification" or (problem is None and is_integer)
            one_each = outputs_of_head == 1 or is_class
            check_labels("labels", labels, *([(batch,), (batch, 1)] if one_each else [(batch, outputs_of_head)]))
            loss = self.loss_function(labels=labels, pooled_logits=logits.float(), config=self.config)
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class UltraFastBertForTokenClassification(UltraFastBertPreTrainedModel):
    """The encoder with a head that classifies tokens."""

    def __init__(self, config: UltraFastBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = UltraFastBertModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)  # pyright: ignore[reportArgumentType]
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Classifies tokens; arguments not listed are those of `UltraFastBertModel.forward`.

        Args:
            labels: `(batch, seq)` int64 classes, and -100 where the loss ignores a position.

        Returns:
            `logits` `(batch, seq, num_labels)`. With `labels` also the `loss`, the mean cross-entropy in float32.
        """
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        check_labels("labels", labels, tuple(logits.shape[:2]))
        loss = self.loss_function(logits, labels, self.config, **kwargs) if labels is not None else None
        return TokenClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class UltraFastBertForQuestionAnswering(UltraFastBertPreTrainedModel):
    """The encoder with a head that finds the answer to a question in a text."""

    accepts_loss_kwargs = False

    def __init__(self, config: UltraFastBertConfig):
        super().__init__(config)
        self.model = UltraFastBertModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput:
        """Finds answer spans; arguments not listed are those of `UltraFastBertModel.forward`.

        Args:
            start_positions, end_positions: `(batch,)` int64, the positions of the answer's first and last token. The
                loss ignores positions beyond the sequence.

        Returns:
            `start_logits` and `end_logits` `(batch, seq)`. With both positions also the `loss`, the average of the two
            cross-entropies, computed in float32.
        """
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        logits = self.qa_outputs(self.dropout(outputs.last_hidden_state))  # (batch, seq, 2)
        start_logits, end_logits = (side.contiguous() for side in logits.unbind(dim=-1))
        loss, batch = None, logits.shape[0]
        for name, positions in (("start_positions", start_positions), ("end_positions", end_positions)):
            check_labels(name, positions, (batch,), (batch, 1))
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits.float(), end_logits.float(), start_positions, end_positions)
        return QuestionAnsweringModelOutput(loss, start_logits, end_logits, outputs.hidden_states, outputs.attentions)


class UltraFastBertForMultipleChoice(UltraFastBertPreTrainedModel):
    """The encoder with a head that scores the choices of a question; each choice is one sequence."""

    accepts_loss_kwargs = False

    def __init__(self, config: UltraFastBertConfig):
        super().__init__(config)
        self.model = UltraFastBertModel(config)
        self.pooler = UltraFastBertPooler(config)
        self.classifier = nn.Linear(config.classifier_hidden_size, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> MultipleChoiceModelOutput:
        """Scores choices; arguments not listed are those of `UltraFastBertModel.forward`.

        They have a dimension of choices after the batch: `(batch, choices, seq)`.

        Args:
            labels: `(batch,)` int64, the right choice.

        Returns:
            `logits` `(batch, choices)`. With `labels` also the `loss`, the mean cross-entropy, computed in float32.
        """
        given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        given |= {"attention_mask": attention_mask, "position_ids": position_ids, "token_type_ids": token_type_ids}
        width, dimensions = self.config.embedding_size or self.config.hidden_size, ("batch", "choices", "seq")
        batch, choices, _ = check_inputs(given, self.config.vocab_size, width, dimensions)
        # (batch, choices, ...) -> (batch * choices, ...)
        input_ids, attention_mask, position_ids, inputs_embeds, token_type_ids = (
            None if tensor is None else tensor.flatten(0, 1)
            for tensor in (input_ids, attention_mask, position_ids, inputs_embeds, token_type_ids)
        )
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds, token_type_ids, **kwargs)
        logits = self.classifier(self.pooler(outputs.last_hidden_state, attention_mask)).view(batch, choices)
        check_labels("labels", labels, (batch,))
        loss = nn.functional.cross_entropy(logits.float(), labels.to(logits.device)) if labels is not None else None
        return MultipleChoiceModelOutput(loss, logits, outputs.hidden_states, outputs.attentions)
