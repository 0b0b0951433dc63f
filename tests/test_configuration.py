"""The configuration: defaults, saving and loading, and errors."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from ultrafastbert import UltraFastBertConfig


def test_the_default_is_the_paper_s_1x11():
    config = UltraFastBertConfig()
    assert (config.feedforward, config.fff_trees, config.fff_depth) == ("fff", 1, 11)
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (32768, 768, 16)
    assert (config.num_attention_heads, config.max_position_embeddings) == (12, 128)
    assert config.classifier_hidden_size == 1024 and config.tie_word_embeddings and config.num_labels == 2


def test_round_trip(tmp_path):
    config = UltraFastBertConfig(feedforward="dense", intermediate_size=100, classifier_pooling="mean", num_labels=5)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"hidden_size": 100, "num_attention_heads": 12}, ["hidden_size is 100", "num_attention_heads (12)"]),
        ({"hidden_size": 33, "num_attention_heads": 3}, ["hidden_size is 33", "even"]),
        ({"hidden_size": 0}, ["hidden_size is 0", "at least 1"]),
        ({"vocab_size": 0}, ["vocab_size is 0"]),
        ({"num_attention_heads": 0}, ["num_attention_heads is 0"]),
        ({"max_position_embeddings": 0}, ["max_position_embeddings is 0"]),
        ({"num_hidden_layers": -1}, ["num_hidden_layers is -1", "from 0 to 10000"]),
        ({"fff_depth": -1}, ["fff_depth is -1", "from 0 to 30"]),
        ({"fff_trees": 0}, ["fff_trees is 0", "at least 1"]),
        ({"intermediate_size": 0}, ["intermediate_size is 0"]),
        ({"feedforward": "moe"}, ["feedforward", "fff", "dense", "moe"]),
        ({"classifier_pooling": "max"}, ["classifier_pooling", "cls", "mean", "max"]),
        ({"classifier_activation": "tanhh"}, ["classifier_activation is 'tanhh'", "tanh"]),
        ({"classifier_hidden_size": 0}, ["classifier_hidden_size is 0"]),
        ({"hidden_dropout_prob": 1.0}, ["hidden_dropout_prob is 1.0", "less than 1"]),
        ({"attention_probs_dropout_prob": -0.1}, ["attention_probs_dropout_prob is -0.1"]),
        ({"classifier_dropout": 2}, ["classifier_dropout is 2"]),
        ({"layer_norm_eps": 0.0}, ["layer_norm_eps is 0.0"]),
        ({"initializer_range": -0.02}, ["initializer_range is -0.02"]),
        ({"pad_token_id": 32768}, ["pad_token_id is 32768", "32767"]),
        ({"pad_token_id": -1}, ["pad_token_id is -1"]),
        ({"hidden_size": "768"}, ["hidden_size", "int", "768"]),
        ({"embedding_size": 8}, ["head_transform is False", "True, because embedding_size is given"]),
        ({"embedding_size": 0, "head_transform": True}, ["embedding_size is 0", "at least 1"]),
        ({"embedding_size": 7, "head_transform": True}, ["embedding_size is 7", "even"]),
        ({"feedforward_sizes": ["1x2"]}, ["feedforward_sizes is ['1x2']", "num_hidden_layers (16) sizes"]),
        ({"feedforward_sizes": ["1y2"], "num_hidden_layers": 1}, ["feedforward_sizes is '1y2'", "1xDEPTHxLEAF"]),
        ({"norm_position": "middle"}, ["norm_position", "middle"]),
        ({"type_vocab_size": -1}, ["type_vocab_size is -1", "at least 0"]),
        ({"hidden_act": "smelu"}, ["hidden_act is 'smelu'"]),
    ],
)
def test_refused_at_construction(options, words):
    with pytest.raises(StrictDataclassError) as error:
        UltraFastBertConfig(**options)
    for word in words:
        assert word in str(error.value)


def test_refused_when_saved_and_when_loaded(tmp_path):
    config = UltraFastBertConfig()
    config.fff_depth = -3
    with pytest.raises(StrictDataclassError, match="fff_depth is -3"):
        config.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "ultrafastbert", "fff_trees": 0}))
    with pytest.raises(StrictDataclassError, match="fff_trees is 0"):
        AutoConfig.from_pretrained(tmp_path)


def test_extremes_are_allowed():
    UltraFastBertConfig(fff_depth=0, fff_trees=3072, pad_token_id=None, num_hidden_layers=0, hidden_dropout_prob=0)
