"""The BERT family: how the encoders of transformers that can be converted name what this package has.

A `Family` maps names of this package to names of transformers: fields of the configuration, modules of the encoder,
modules of each head. All families are post-norm encoders with learned positions and biases. They differ in names and
in the activations of their heads. A module that is mapped to several names is the concatenation of these.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ultrafastbert.modeling_ultrafastbert import (
    UltraFastBertForMaskedLM,
    UltraFastBertForMultipleChoice,
    UltraFastBertForQuestionAnswering,
    UltraFastBertForSequenceClassification,
    UltraFastBertForTokenClassification,
    UltraFastBertModel,
    UltraFastBertPreTrainedModel,
)

Names = Mapping[str, str | tuple[str, ...]]
"""Our names -> theirs."""

FIXED = {
    "norm_position": "post",
    "position_embedding": "learned",
    "projection_bias": True,
    "head_transform": True,
    "decoder_bias": True,
    "feedforward": "dense",
    "classifier_pooling": "cls",
}
"""The fields of our configuration that have one value for the whole family."""


@dataclass(frozen=True)
class Head:
    """A class of models of a family.

    Attributes:
        model_class: of this package.
        modules: of the head, in `model_class` -> in the family's class, where "ENCODER" is the name of the encoder.
        config: fields of our configuration -> of theirs; they add to those of the family.
        fixed: fields of our configuration that have one value.
        required: fields of their configuration that must have this value.
    """

    model_class: type[UltraFastBertPreTrainedModel]
    modules: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    required: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A type of models of transformers.

    Attributes:
        classes: what the names of its classes begin with.
        encoder: the name of the encoder in models with a head.
        layers: the name of the list of layers in the encoder.
        config: fields of our configuration -> of theirs.
        modules: of the encoder without its layers.
        layer_modules: of a layer.
        heads: by what the names of classes end with.
        classifier_activation: of its heads for sequences.
        positions_after_padding: whether positions count from `pad_token_id + 1`, as in fairseq, and not from 0.
    """

    classes: str
    encoder: str
    layers: str
    config: Mapping[str, str]
    modules: Names
    layer_modules: Names
    heads: Mapping[str, Head]
    classifier_activation: str
    positions_after_padding: bool = False


BERT_CONFIG = {
    name: name
    for name in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "type_vocab_size",
        "intermediate_size",
        "hidden_act",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "layer_norm_eps",
        "initializer_range",
        "pad_token_id",
        "tie_word_embeddings",
        "classifier_dropout",
    )
}
BERT_EMBEDDINGS = {
    "embeddings.word_embeddings": "embeddings.word_embeddings",
    "embeddings.type_embeddings": "embeddings.token_type_embeddings",
    "embeddings.position_embeddings": "embeddings.position_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
}
BERT_LAYER = {
    "attention.qkv_proj": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.o_proj": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feedforward.up_proj": "intermediate.dense",
    "feedforward.down_proj": "output.dense",
    "feedforward_norm": "output.LayerNorm",
}
MODEL = Head(UltraFastBertModel)
TOKENS = Head(UltraFastBertForTokenClassification, {"classifier": "classifier"})
QUESTIONS = Head(UltraFastBertForQuestionAnswering, {"qa_outputs": "qa_outputs"}, fixed={"classifier_dropout": 0.0})
BERT_MASKED_LM = Head(
    UltraFastBertForMaskedLM,
    {
        "transform.dense": "cls.predictions.transform.dense",
        "transform.norm": "cls.predictions.transform.LayerNorm",
        "decoder": "cls.predictions.decoder",
    },
)
POOLED = {"pooler.dense": "ENCODER.pooler.dense", "classifier": "classifier"}

BERT = Family(
    classes="Bert",
    encoder="bert",
    layers="encoder.layer",
    config=BERT_CONFIG,
    modules=BERT_EMBEDDINGS,
    layer_modules=BERT_LAYER,
    classifier_activation="tanh",
    heads={
        "Model": MODEL,
        "ForMaskedLM": BERT_MASKED_LM,
        "ForPreTraining": BERT_MASKED_LM,
        "ForSequenceClassification": Head(UltraFastBertForSequenceClassification, POOLED),
        "ForMultipleChoice": Head(UltraFastBertForMultipleChoice, POOLED),
        "ForTokenClassification": TOKENS,
        "ForQuestionAnswering": QUESTIONS,
    },
)

ROBERTA = Family(
    classes="Roberta",
    encoder="roberta",
    layers="encoder.layer",
    config=BERT_CONFIG,
    modules=BERT_EMBEDDINGS,
    layer_modules=BERT_LAYER,
    classifier_activation="tanh",
    positions_after_padding=True,
    heads={
        "Model": MODEL,
        "ForMaskedLM": Head(
            UltraFastBertForMaskedLM,
            {
                "transform.dense": "lm_head.dense",
                "transform.norm": "lm_head.layer_norm",
                "decoder": "lm_head.decoder",
            },
            required={"hidden_act": "gelu"},  # that of the head, whatever the layers have
        ),
        "ForSequenceClassification": Head(
            UltraFastBertForSequenceClassification,
            {"pooler.dense": "classifier.dense", "classifier": "classifier.out_proj"},
        ),
        "ForMultipleChoice": Head(UltraFastBertForMultipleChoice, POOLED),
        "ForTokenClassification": TOKENS,
        "ForQuestionAnswering": QUESTIONS,
    },
)

DISTILBERT_CLASSIFIER = {"pooler.dense": "pre_classifier", "classifier": "classifier"}
DISTILBERT = Family(
    classes="DistilBert",
    encoder="distilbert",
    layers="transformer.layer",
    config={
        "vocab_size": "vocab_size",
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "max_position_embeddings": "max_position_embeddings",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "initializer_range": "initializer_range",
        "pad_token_id": "pad_token_id",
        "tie_word_embeddings": "tie_word_embeddings",
        "classifier_dropout": "seq_classif_dropout",
    },
    modules={ours: theirs for ours, theirs in BERT_EMBEDDINGS.items() if ours != "embeddings.type_embeddings"},
    layer_modules={
        "attention.qkv_proj": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        "attention.o_proj": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "feedforward.up_proj": "ffn.lin1",
        "feedforward.down_proj": "ffn.lin2",
        "feedforward_norm": "output_layer_norm",
    },
    classifier_activation="relu",
    heads={
        "Model": MODEL,
        "ForMaskedLM": Head(
            UltraFastBertForMaskedLM,
            {
                "transform.dense": "vocab_transform",
                "transform.norm": "vocab_layer_norm",
                "decoder": "vocab_projector",
            },
        ),
        "ForSequenceClassification": Head(UltraFastBertForSequenceClassification, DISTILBERT_CLASSIFIER),
        "ForMultipleChoice": Head(UltraFastBertForMultipleChoice, DISTILBERT_CLASSIFIER),
        "ForTokenClassification": replace(TOKENS, config={"classifier_dropout": "dropout"}),
        "ForQuestionAnswering": replace(QUESTIONS, config={"classifier_dropout": "qa_dropout"}, fixed={}),
    },
)

ELECTRA = Family(
    classes="Electra",
    encoder="electra",
    layers="encoder.layer",
    config=BERT_CONFIG | {"embedding_size": "embedding_size"},
    modules=BERT_EMBEDDINGS | {"embeddings.projection": "embeddings_project"},
    layer_modules=BERT_LAYER,
    classifier_activation="gelu",
    heads={
        "Model": MODEL,
        "ForPreTraining": MODEL,  # its head, the discriminator, tells which tokens were replaced
        "ForMaskedLM": Head(
            UltraFastBertForMaskedLM,
            {
                "transform.dense": "generator_predictions.dense",
                "transform.norm": "generator_predictions.LayerNorm",
                "decoder": "generator_lm_head",
            },
            required={"hidden_act": "gelu"},
        ),
        "ForSequenceClassification": Head(
            UltraFastBertForSequenceClassification,
            {"pooler.dense": "classifier.dense", "classifier": "classifier.out_proj"},
        ),
        "ForMultipleChoice": Head(
            UltraFastBertForMultipleChoice,
            {"pooler.dense": "sequence_summary.summary", "classifier": "classifier"},
            config={"classifier_activation": "summary_activation", "classifier_dropout": "summary_last_dropout"},
            required={"summary_type": "first", "summary_use_proj": True},
        ),
        "ForTokenClassification": TOKENS,
        "ForQuestionAnswering": QUESTIONS,
    },
)

FAMILIES = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": replace(ROBERTA, classes="XLMRoberta"),
    "camembert": replace(ROBERTA, classes="Camembert"),
    "distilbert": DISTILBERT,
    "electra": ELECTRA,
}
"""By `model_type`."""

MISSING_HERE = {
    "albert": "layers that share their weights",
    "big_bird": "sparse attention",
    "convbert": "convolutions",
    "deberta": "relative positions",
    "deberta-v2": "relative positions",
    "funnel": "relative positions and pooling between layers",
    "longformer": "windowed attention",
    "megatron-bert": "norms before each part with BERT's embeddings",
    "mobilebert": "bottlenecks in its layers",
    "modernbert": "gated feedforward layers",
    "mpnet": "relative positions",
    "mt5": "relative positions and a decoder",
    "new": "gated feedforward layers",
    "nomic_bert": "gated feedforward layers",
    "roformer": "rotary positions with BERT's norms",
    "t5": "relative positions and a decoder",
    "xlm-roberta-xl": "norms before each part with BERT's embeddings",
    "xlnet": "relative positions",
}
"""What well-known models have that this package does not, by `model_type`."""
