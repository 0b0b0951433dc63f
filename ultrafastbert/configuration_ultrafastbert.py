"""UltraFastBertConfig: everything that determines the shape and the function of an UltraFastBERT model.

The size of the feedforward layers is written as in the paper, `trees x depth`: the default 1x11 is one tree
of depth 11. `feedforward="dense"` gives the same encoder with ordinary layers of `intermediate_size` neurons,
the baseline. What cannot work is refused when a configuration is made, loaded or saved.
"""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from ultrafastbert.utils.sizes import MAX_DEPTH


@strict
class UltraFastBertConfig(PreTrainedConfig):
    """Configuration of an UltraFastBERT model; all arguments are keywords.

    Args:
        vocab_size: tokens in the vocabulary.
        hidden_size: width of the encoder; even, and a multiple of `num_attention_heads`.
        num_hidden_layers: transformer layers.
        num_attention_heads: attention heads of a layer.
        max_position_embeddings: longest sequence, in tokens.
        feedforward: `"fff"` for fast feedforward trees, `"dense"` for an ordinary feedforward layer.
        fff_depth: levels of a tree below its root; a token uses `fff_depth + 1` of a tree's
            `2**(fff_depth + 1) - 1` neurons.
        fff_trees: trees of a layer, evaluated side by side, their outputs added.
        intermediate_size: neurons of a dense layer; used with `feedforward="dense"` only.
        hidden_dropout_prob: dropout after the embeddings, after attention and after the feedforward layer.
        attention_probs_dropout_prob: dropout of attention weights.
        layer_norm_eps: epsilon of all layer norms.
        initializer_range: standard deviation of the normal initialisation of embeddings and linear layers;
            trees have their own, `FFF.reset_parameters`.
        pad_token_id: the padding token, whose embedding starts at zero and gets no gradient as an input.
        tie_word_embeddings: whether the masked-LM decoder is the token embedding.
        classifier_pooling: what a sequence classifier reads, `"cls"` (the first real token) or `"mean"` (the
            average of the real tokens).
        classifier_hidden_size: width of a sequence classifier's hidden layer.
        classifier_activation: its activation, a name of `transformers.activations`.
        classifier_dropout: dropout before the last linear layer of every head for downstream tasks.

    Raises:
        huggingface_hub.errors.StrictDataclassError: a field of the wrong type, or values that cannot work
            together; the message names the field, its value and what it should be.
    """

    model_type = "ultrafastbert"

    vocab_size: int = 32768
    hidden_size: int = 768
    num_hidden_layers: int = 16
    num_attention_heads: int = 12
    max_position_embeddings: int = 128
    feedforward: Literal["fff", "dense"] = "fff"
    fff_depth: int = 11
    fff_trees: int = 1
    intermediate_size: int = 3072
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    classifier_pooling: Literal["cls", "mean"] = "cls"
    classifier_hidden_size: int = 1024
    classifier_activation: str = "tanh"
    classifier_dropout: float | int = 0.1

    def validate_architecture(self):
        """Refuses values out of range and values that cannot work together; `strict` calls it."""
        for name in (
            "vocab_size",
            "hidden_size",
            "num_attention_heads",
            "max_position_embeddings",
            "fff_trees",
            "intermediate_size",
            "classifier_hidden_size",
        ):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        self._require(self.num_hidden_layers >= 0, "num_hidden_layers", "at least 0")
        self._require(0 <= self.fff_depth <= MAX_DEPTH, "fff_depth", f"from 0 to {MAX_DEPTH}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            self._require(0 <= getattr(self, name) < 1, name, "at least 0 and less than 1")
        for name in ("layer_norm_eps", "initializer_range"):
            self._require(getattr(self, name) > 0, name, "greater than 0")

        heads = self.num_attention_heads
        self._require(self.hidden_size % heads == 0, "hidden_size", f"a multiple of num_attention_heads ({heads})")
        self._require(self.hidden_size % 2 == 0, "hidden_size", "even: sinusoidal positions come in pairs")
        self._require(
            self.pad_token_id is None or 0 <= self.pad_token_id < self.vocab_size,
            "pad_token_id",
            f"None or a token id, from 0 to {self.vocab_size - 1} (vocab_size - 1)",
        )
        self._require(
            self.classifier_activation in ACT2FN,
            "classifier_activation",
            f"one of {', '.join(sorted(ACT2FN))}",
        )

    def _require(self, condition: bool, name: str, expected: str) -> None:
        if not condition:
            raise ValueError(f"{name} is {getattr(self, name)!r}; it should be {expected}")
