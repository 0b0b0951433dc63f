"""UltraFastBERT: crammedBERT's encoder with fast feedforward trees, and its heads.

Notable:
- the encoder of crammedBERT (Geiping & Goldstein, arXiv 2212.14034): token embedding plus scaled sinusoidal
  positions, pre-norm layers, no biases in attention and dense projections, a final norm, and a masked-LM
  decoder that is the token embedding, without a head transform;
- feedforward layers are fast feedforward trees (Belcak & Wattenhofer, arXiv 2311.10770), or dense to compare;
- the masked-LM head can be given the positions to predict and then computes logits only there: static shapes,
  and a decoder that costs a quarter when a quarter of the tokens is masked;
- padding on either side, in any amount, does not change what a real token gets: positions are counted from
  the first real token of a row.
"""

import math

import torch
from torch import nn
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
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ultrafastbert.configuration_ultrafastbert import UltraFastBertConfig
from ultrafastbert.layers.fff import FFF


def sinusoids(length: int, width: int) -> torch.Tensor:
    """Sinusoidal positions (arXiv 1706.03762, section 3.5): `(length, width)`, float32, on the CPU.

    Computed in float32 whatever the default dtype is: the angles of far positions need the precision.
    """
    positions = torch.arange(length, dtype=torch.float32, device="cpu")[:, None]
    pairs = torch.arange(0, width, 2, dtype=torch.float32, device="cpu")
    angles = positions * torch.exp(pairs * (-math.log(10000.0) / width))  # (length, width / 2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def first_real_token(attention_mask: torch.Tensor) -> torch.Tensor:
    """Column of each row's first real token, 0 in a row of padding: `(batch, seq)` -> `(batch,)` int64."""
    return (attention_mask != 0).int().argmax(dim=-1)


class UltraFastBertEmbeddings(nn.Module):
    """Token embedding plus sinusoidal positions times one learned number, then norm and dropout."""

    def __init__(self, config: UltraFastBertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_scale = nn.Parameter(torch.full((1,), config.hidden_size**-0.5))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        table = sinusoids(config.max_position_embeddings, config.hidden_size)
        # Not in the checkpoint: `_init_weights` makes it anew when a model is loaded on the meta device.
        self.register_buffer("positions", table.to(self.position_scale), persistent=False)

    def forward(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor | None,
        position_ids: torch.LongTensor,
    ) -> torch.Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)  # (batch, seq, hidden)
        positions = nn.functional.embedding(position_ids, self.positions)  # (batch or 1, seq, hidden)
        return self.dropout(self.norm(inputs_embeds + self.position_scale * positions))


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that returns its weights; query, key and value are `(batch, heads, seq, head_dim)`."""
    # At least in float32: half-precision scores plus a mask of the lowest number could overflow to -inf, and
    # a row that is all -inf becomes NaN.
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = (query @ key.transpose(2, 3)).to(dtype) * scaling  # (batch, heads, seq, seq)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights  # (batch, seq, heads, head_dim)


class UltraFastBertAttention(nn.Module):
    """Multi-head self-attention over all tokens, without biases."""

    is_causal = False

    def __init__(self, config: UltraFastBertConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        # One matrix for query, key and value: rows [q; k; v], each (heads, head_dim).
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        qkv = self.qkv_proj(hidden_states).unflatten(-1, (3, -1, self.head_dim))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, seq, head_dim)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )  # output: (batch, seq, heads, head_dim)
        return self.o_proj(output.flatten(2)), weights


class UltraFastBertDense(nn.Module):
    """The ordinary feedforward layer, without biases: what the trees are compared with."""

    def __init__(self, config: UltraFastBertConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.gelu(self.up_proj(hidden_states)))


class UltraFastBertLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer."""

    def __init__(self, config: UltraFastBertConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = UltraFastBertAttention(config)
        self.feedforward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.feedforward == "fff":
            self.feedforward = FFF(config.hidden_size, config.fff_depth, trees=config.fff_trees)
        else:
            self.feedforward = UltraFastBertDense(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attended, _ = self.attention(self.attention_norm(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.feedforward(self.feedforward_norm(hidden_states)))


class UltraFastBertPreTrainedModel(PreTrainedModel):
    """What all models of the family have in common: initialisation, loading, which features they support."""

    config: UltraFastBertConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["UltraFastBertEmbeddings", "UltraFastBertLayer"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": UltraFastBertLayer, "attentions": UltraFastBertAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # linear layers, embeddings and norms
        if isinstance(module, UltraFastBertEmbeddings):
            init.constant_(module.position_scale, self.config.hidden_size**-0.5)
            init.copy_(module.positions, sinusoids(*module.positions.shape))
        elif isinstance(module, FFF):
            # Leaves loaded weights alone: transformers guards torch.nn.init here.
            module.reset_parameters()


class UltraFastBertModel(UltraFastBertPreTrainedModel):
    """The encoder: tokens in, one vector per token out."""

    def __init__(self, config: UltraFastBertConfig):
        super().__init__(config)
        self.embeddings = UltraFastBertEmbeddings(config)
        self.layers = nn.ModuleList([UltraFastBertLayer(config) for _ in range(config.num_hidden_layers)])
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encodes a batch of token sequences.

        Args:
            input_ids: `(batch, seq)` int64.
            attention_mask: `(batch, seq)`, nonzero for real tokens and 0 for padding; a 4-D mask goes to the
                attention as it is. None: no padding.
            position_ids: `(batch or 1, seq)` int64, each less than `max_position_embeddings`. By default
                columns counted from the first real token of the row, whatever is masked after it.
            inputs_embeds: `(batch, seq, hidden)` in place of `input_ids`.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, options of the attention
                function. There are no segment embeddings: `token_type_ids` have no effect.

        Returns:
            `last_hidden_state` `(batch, seq, hidden)`; if asked for, `hidden_states`: the embeddings, then
            the output of each layer, the last one after the final norm.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`, or positions beyond the table.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds should be given")
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = self._default_position_ids(inputs, attention_mask)
        else:
            self._check_position_ids(position_ids)

        hidden_states = self.embeddings(input_ids, inputs_embeds, position_ids)
        return BaseModelOutput(last_hidden_state=self.run_layers(hidden_states, attention_mask, **kwargs))

    def run_layers(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """The layers and the final norm, `(batch, seq, hidden)` -> the same. `optimize_for_inference` replaces it."""
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return self.final_norm(hidden_states)

    def _default_position_ids(self, inputs: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """`(batch or 1, seq)` int64: columns counted from each row's first real token, 0 before it."""
        longest = self.config.max_position_embeddings
        if inputs.shape[1] > longest:
            raise ValueError(
                f"the sequences are {inputs.shape[1]} tokens long; max_position_embeddings is {longest}, "
                "so they should be truncated to that length (truncation=True of the tokenizer)"
            )
        columns = torch.arange(inputs.shape[1], device=inputs.device)[None]  # (1, seq)
        if attention_mask is None or attention_mask.dim() != 2:
            return columns
        return (columns - first_real_token(attention_mask).to(inputs.device)[:, None]).clamp(min=0)

    def _check_position_ids(self, position_ids: torch.Tensor) -> None:
        if torch.compiler.is_compiling() or position_ids.numel() == 0:
            return
        lowest, highest = position_ids.aminmax()
        if lowest < 0 or highest >= self.config.max_position_embeddings:
            raise ValueError(
                f"position_ids are in [{lowest}, {highest}]; they should be in "
                f"[0, {self.config.max_position_embeddings - 1}] (max_position_embeddings - 1)"
            )


class UltraFastBertForMaskedLM(UltraFastBertPreTrainedModel):
    """The encoder with a decoder that predicts masked tokens."""

    _tied_weights_keys = {"decoder.weight": "model.embeddings.word_embeddings.weight"}

    def __init__(self, config: UltraFastBertConfig):
        super().__init__(config)
        self.model = UltraFastBertModel(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        masked_positions: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """Predicts tokens; arguments not listed are those of `UltraFastBertModel.forward`.

        Args:
            labels: `(batch, seq)` int64, the tokens to predict, -100 where there is nothing to predict.
            masked_positions: `(batch, k)` int64, the columns to predict. Logits are computed only there, and
                the loss reads the labels only there.

        Returns:
            `logits` `(batch, seq, vocab)`, or `(batch, k, vocab)` with `masked_positions`; with `labels` the
            `loss`, the mean cross-entropy in nats, computed in float32.

        Raises:
            ValueError: `masked_positions` of another shape.
        """
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        hidden_states = outputs.last_hidden_state  # (batch, seq, hidden)
        if masked_positions is not None:
            hidden_states, labels = _gather_columns(masked_positions, hidden_states, labels)
        logits = self.decoder(hidden_states)

        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=logits.shape[-1], **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def _gather_columns(
    columns: torch.Tensor, hidden_states: torch.Tensor, labels: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`(batch, k)` columns of `(batch, seq, hidden)` states and `(batch, seq)` labels."""
    if columns.dim() != 2 or columns.shape[0] != hidden_states.shape[0]:
        raise ValueError(
            f"masked_positions has shape {tuple(columns.shape)}; it should be ({hidden_states.shape[0]}, k), "
            "k columns of every row of the batch"
        )
    index = columns[..., None].expand(-1, -1, hidden_states.shape[-1])  # (batch, k, hidden)
    return hidden_states.gather(1, index), None if labels is None else labels.gather(1, columns)


class UltraFastBertPooler(nn.Module):
    """One vector per sequence, through a hidden layer: what sequence classifiers read."""

    def __init__(self, config: UltraFastBertConfig):
        super().__init__()
        self.pooling = config.classifier_pooling
        self.dense = nn.Linear(config.hidden_size, config.classifier_hidden_size)
        self.activation = ACT2FN[config.classifier_activation]
        self.dropout = nn.Dropout(config.classifier_dropout)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """`(batch, seq, hidden)` and a mask `(batch, seq)` or None -> `(batch, classifier_hidden_size)`."""
        return self.dropout(self.activation(self.dense(self._pool(hidden_states, attention_mask))))

    def _pool(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        if attention_mask is None:
            return hidden_states[:, 0] if self.pooling == "cls" else hidden_states.mean(dim=1)
        if attention_mask.shape != hidden_states.shape[:2]:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; to classify sequences it should be "
                f"(batch, seq), here {tuple(hidden_states.shape[:2])}: it says which tokens are real"
            )
        attention_mask = attention_mask.to(hidden_states.device)
        if self.pooling == "cls":
            rows = torch.arange(hidden_states.shape[0], device=hidden_states.device)
            return hidden_states[rows, first_real_token(attention_mask)]
        real = (attention_mask != 0).to(hidden_states.dtype)[..., None]  # (batch, seq, 1)
        return (hidden_states * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)  # a row of padding gives 0


class UltraFastBertForSequenceClassification(UltraFastBertPreTrainedModel):
    """The encoder with a classifier (or regressor) of whole sequences."""

    # The loss is a mean over the batch: Trainer then divides it by its accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: UltraFastBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = UltraFastBertModel(config)
        self.pooler = UltraFastBertPooler(config)
        self.classifier = nn.Linear(config.classifier_hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """Classifies sequences; arguments not listed are those of `UltraFastBertModel.forward`.

        Args:
            labels: `(batch,)` int64 classes, or floats for regression (one label), or `(batch, num_labels)`
                floats for regression of several numbers and for classes that do not exclude each other.
                Which it is, `config.problem_type` says; it is set from the first labels when it is None.

        Returns:
            `logits` `(batch, num_labels)` and, with `labels`, the `loss`: cross-entropy, squared error or
            binary cross-entropy, averaged, in float32.
        """
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.pooler(outputs.last_hidden_state, attention_mask))

        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits.float(), config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class UltraFastBertForTokenClassification(UltraFastBertPreTrainedModel):
    """The encoder with a classifier of every token."""

    def __init__(self, config: UltraFastBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = UltraFastBertModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """Classifies tokens; arguments not listed are those of `UltraFastBertModel.forward`.

        Args:
            labels: `(batch, seq)` int64 classes, -100 where there is nothing to predict.

        Returns:
            `logits` `(batch, seq, num_labels)` and, with `labels`, the `loss`, the mean cross-entropy in
            float32.
        """
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))

        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


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
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:
        """Finds answer spans; arguments not listed are those of `UltraFastBertModel.forward`.

        Args:
            start_positions: `(batch,)` int64, the column of the answer's first token; beyond the sequence: no
                answer, and the row does not count.
            end_positions: `(batch,)` int64, the column of its last token.

        Returns:
            `start_logits` and `end_logits` `(batch, seq)` and, with both positions, the `loss`, the average
            of the two cross-entropies in float32.
        """
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        logits = self.qa_outputs(self.dropout(outputs.last_hidden_state))  # (batch, seq, 2)
        start_logits, end_logits = (side.contiguous() for side in logits.unbind(dim=-1))

        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits.float(), end_logits.float(), start_positions, end_positions)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class UltraFastBertForMultipleChoice(UltraFastBertPreTrainedModel):
    """The encoder with a head that scores the choices of a question, each a sequence of its own."""

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
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MultipleChoiceModelOutput:
        """Scores choices.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds: as for `UltraFastBertModel.forward`, with
                a dimension of choices after the batch: `(batch, choices, seq)`.
            labels: `(batch,)` int64, the right choice.

        Returns:
            `logits` `(batch, choices)` and, with `labels`, the `loss`, the mean cross-entropy in float32.
        """
        choices = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
        # (batch, choices, ...) -> (batch * choices, ...)
        input_ids, attention_mask, position_ids, inputs_embeds = (
            None if tensor is None else tensor.flatten(0, 1)
            for tensor in (input_ids, attention_mask, position_ids, inputs_embeds)
        )
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.pooler(outputs.last_hidden_state, attention_mask)).view(-1, choices)

        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.float(), labels.to(logits.device))
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "UltraFastBertForMaskedLM",
    "UltraFastBertForMultipleChoice",
    "UltraFastBertForQuestionAnswering",
    "UltraFastBertForSequenceClassification",
    "UltraFastBertForTokenClassification",
    "UltraFastBertModel",
    "UltraFastBertPreTrainedModel",
]
