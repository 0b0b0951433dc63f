"""UltraFastBertConfig: the settings of an UltraFastBERT model, checked when it is created, loaded or saved.

The size of the feedforward layers is written as in the paper, `TREESxDEPTH`: the default 1x11 is one tree of depth 11,
and 1x7x32 is one of depth 7 with leaves of 32 neurons.
`feedforward="dense"` gives the baseline, the same encoder with ordinary layers of `intermediate_size` neurons, and
`feedforward="none"` the control, the same encoder without feedforward layers.

By default the architecture is that of crammedBERT. The options in which the encoders of the BERT family differ from it
are there so that their checkpoints can be converted: norms after each part, learned positions, token types, biases,
factorised embeddings, a transform before the masked-LM decoder.
"""

import os
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from ultrafastbert.utils.origin import AUTO_MAP, write_requirement
from ultrafastbert.utils.sizes import MAX_DEPTH, DenseSize, NoSize, Size, TreeSize, parse_size
from ultrafastbert.utils.validation import POSITIVE, Rule, at_least, between, check, check_fields, one_of

DROPOUT = Rule(lambda value: 0 <= value < 1, "at least 0 and less than 1")


@strict
class UltraFastBertConfig(PreTrainedConfig):
    """Configuration of an UltraFastBERT model; all arguments are keywords.

    Args:
        vocab_size: number of tokens in the vocabulary.
        hidden_size: width of the encoder; even, and a multiple of `num_attention_heads`.
        embedding_size: width of the embeddings, which a linear layer then maps to `hidden_size` (arXiv 1909.11942,
            section 3.1); None: that of the encoder. Needs `head_transform`.
        num_hidden_layers: number of transformer layers.
        num_attention_heads: number of attention heads of a layer.
        max_position_embeddings: length of the longest sequence, in tokens. With rotary positions longer sequences are
            accepted, and this is only the length that tokenizers truncate to.
        position_embedding: `"sinusoidal"` positions, added to the token embeddings (arXiv 1706.03762, section 3.5),
            `"learned"` positions, added too, or `"rotary"` positions, which rotate queries and keys (arXiv
            2104.09864).
        rope_theta: base of the angles of rotary positions.
        type_vocab_size: number of token types, whose embeddings are added to those of the tokens; 0: none.
        norm_position: `"pre"`: norms before attention and feedforward layers, and a final norm; `"post"`: norms of
            the sums after them, and no final norm (arXiv 1706.03762, section 3.1).
        projection_bias: whether the projections of attention and of dense layers have biases.
        hidden_act: activation of dense layers and of the transform before the decoder, a name of
            `transformers.activations`. Trees have GELU.
        head_transform: whether the masked-LM decoder sees the hidden states through a linear layer, `hidden_act` and
            a norm.
        decoder_bias: whether the masked-LM decoder has a bias.
        feedforward: `"fff"` for fast feedforward trees, `"dense"` for an ordinary feedforward layer, `"none"` for
            no feedforward layer (nor its norm) at all.
        fff_depth: number of levels of a tree below its root; a token uses `fff_depth + 1` of the tree's
            `2**(fff_depth + 1) - 1` neurons.
        fff_trees: number of trees of a layer, evaluated in parallel; their outputs are added.
        fff_leaf_size: neurons of a leaf; above the leaves nodes only decide, as `HardFFF` describes, and a token uses
            `fff_depth` nodes and one leaf. None: every node of a path is a neuron, as in `FFF`.
        intermediate_size: number of neurons of a dense layer; used with `feedforward="dense"` only.
        feedforward_sizes: sizes of the layers' feedforward layers, one for each layer, such as
            `["dense-1536", "8x8", "1x7x32", "none"]`; None: all have the size that the fields above give.
        feedforward_skip: whether each feedforward layer also adds its input times a factor for each channel, and a
            bias, as layers do that are distilled from dense ones. With it, a layer of size `none` keeps its norm.
        hidden_dropout_prob: dropout after the embeddings, after attention and after the feedforward layer.
        attention_probs_dropout_prob: dropout of attention weights.
        layer_norm_eps: epsilon of all layer norms.
        initializer_range: standard deviation of the normal initialisation of embeddings and linear layers; for trees
            see `FFF.reset_parameters` and `HardFFF.reset_parameters`.
        zero_init_outputs: whether the matrices whose output is added to the hidden states, `o_proj` of attention,
            `down_proj` of dense layers and the output weights of leaves, start at zero, so that a layer starts as
            (almost) the identity (arXiv 2203.03466, appendix D.2). Trees without leaves start with small output
            weights in any case.
        pad_token_id: id of the padding token, whose embedding starts at zero and gets no gradient as an input; None
            if there is none.
        tie_word_embeddings: whether the masked-LM decoder has the weight of the token embedding.
        classifier_pooling: the input of a sequence classifier, `"cls"` (the first real token) or `"mean"` (the
            average of the real tokens).
        classifier_hidden_size: width of a sequence classifier's hidden layer.
        classifier_activation: activation of that layer, a name of `transformers.activations`.
        classifier_dropout: dropout before the last linear layer of every head except the masked-LM head.

    The other arguments are those of `PreTrainedConfig`, such as `num_labels` and `id2label` of classifiers.

    Raises:
        huggingface_hub.errors.StrictDataclassError: a field has a wrong type or value, or fields contradict each
            other; the message names the field, its value and what it should be.
    """

    model_type = "ultrafastbert"

    vocab_size: int = 32768
    hidden_size: int = 768
    embedding_size: int | None = None
    num_hidden_layers: int = 16
    num_attention_heads: int = 12
    max_position_embeddings: int = 128
    position_embedding: Literal["sinusoidal", "learned", "rotary"] = "sinusoidal"
    rope_theta: float | int = 10000.0
    type_vocab_size: int = 0
    norm_position: Literal["pre", "post"] = "pre"
    projection_bias: bool = False
    hidden_act: str = "gelu"
    head_transform: bool = False
    decoder_bias: bool = False
    feedforward: Literal["fff", "dense", "none"] = "fff"
    fff_depth: int = 11
    fff_trees: int = 1
    fff_leaf_size: int | None = None
    intermediate_size: int = 3072
    feedforward_sizes: list[str] | None = None
    feedforward_skip: bool = False
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    zero_init_outputs: bool = False
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    classifier_pooling: Literal["cls", "mean"] = "cls"
    classifier_hidden_size: int = 1024
    classifier_activation: str = "tanh"
    classifier_dropout: float | int = 0.1

    def validate_architecture(self) -> None:
        """Checks the values and how they fit together; the `strict` decorator calls it.

        Raises:
            ValueError: a value out of range, or two that contradict each other.
        """
        check_fields(self, at_least(1), "vocab_size", "hidden_size", "num_attention_heads", "max_position_embeddings")
        check_fields(self, at_least(1), "embedding_size")
        check_fields(self, at_least(1), "fff_trees", "fff_leaf_size", "intermediate_size", "classifier_hidden_size")
        check_fields(self, at_least(0), "type_vocab_size")
        check_fields(self, between(0, 10_000), "num_hidden_layers")
        check_fields(self, between(0, MAX_DEPTH), "fff_depth")
        check_fields(self, DROPOUT, "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
        check_fields(self, POSITIVE, "layer_norm_eps", "initializer_range", "rope_theta")
        check_fields(self, one_of(*sorted(ACT2FN)), "hidden_act", "classifier_activation")
        check_fields(self, between(0, self.vocab_size - 1), "pad_token_id")

        if self.fff_leaf_size is not None:
            check("fff_trees", self.fff_trees, Rule(lambda trees: trees == 1, "1, because fff_leaf_size is given"))

        if self.embedding_size is not None:
            check("head_transform", self.head_transform, Rule(bool, "True, because embedding_size is given"))
        if self.feedforward_sizes is not None:
            layers = self.num_hidden_layers
            complete = Rule(lambda sizes: len(sizes) == layers, f"a list of num_hidden_layers ({layers}) sizes")
            check("feedforward_sizes", self.feedforward_sizes, complete)
            for size in self.feedforward_sizes:
                parse_size(size, "feedforward_sizes")

        heads = self.num_attention_heads
        multiple = Rule(lambda width: width % heads == 0, f"a multiple of num_attention_heads ({heads})")
        check("hidden_size", self.hidden_size, multiple)
        if self.position_embedding == "rotary":
            pairs = Rule(
                lambda width: width // heads % 2 == 0,
                f"a multiple of 2 * num_attention_heads ({2 * heads}), rotary pairs",
            )
            check("hidden_size", self.hidden_size, pairs)
        even = Rule(lambda width: width % 2 == 0, "even, because sinusoidal positions come in pairs")
        check("hidden_size", self.hidden_size, even)
        if self.position_embedding == "sinusoidal":
            check_fields(self, even, "embedding_size")

    @property
    def sizes_by_layer(self) -> list[Size]:
        """The size of each layer's feedforward layer."""
        if self.feedforward_sizes is not None:
            return [parse_size(size) for size in self.feedforward_sizes]
        size: Size = NoSize()
        if self.feedforward == "fff":
            size = TreeSize(self.fff_trees, self.fff_depth, self.fff_leaf_size)
        elif self.feedforward == "dense":
            size = DenseSize(self.intermediate_size)
        return [size] * self.num_hidden_layers

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes `config.json`, and beside it the file that names this package (`ultrafastbert.utils.origin`)."""
        comes_with_code = self._auto_class is not None  # loaded by trust_remote_code; transformers saves that code
        if not comes_with_code and not os.path.isfile(save_directory):
            self.auto_map = dict(AUTO_MAP)
            write_requirement(Path(save_directory))
        super().save_pretrained(save_directory, push_to_hub, **kwargs)
