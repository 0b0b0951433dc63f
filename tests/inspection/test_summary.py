"""Summaries, tables and pictures of trees whose leaves are known."""

import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ultrafastbert import UltraFastBertConfig, UltraFastBertModel
from ultrafastbert.inspection.loading import Encoder
from ultrafastbert.inspection.summary import summarize, trace
from ultrafastbert.inspection.summary_figures import draw_over_training, draw_summary
from ultrafastbert.inspection.summary_text import render_over_training, render_summary
from ultrafastbert.utils.errors import UserError


def encoder(trees=1, depth=2, layers=2, tokens=None):
    """A small random encoder whose tokens are the letters a to j, without special tokens around them."""
    torch.manual_seed(0)
    vocabulary = {name: index for index, name in enumerate(["[PAD]", "[UNK]", *"abcdefghij"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = UltraFastBertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        fff_trees=trees,
        fff_depth=depth,
        max_position_embeddings=8,
    )
    model = UltraFastBertModel(config).eval()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    return Encoder("a/model", model, fast, tokens)


def send_all_to(encoder, leaf):
    """Sends every token to one leaf of every tree; all decisions but those of the root are certain."""
    with torch.no_grad():
        for layer in encoder.model.layers:
            layer.feedforward.weight_in.zero_()
            node, depth = 0, layer.feedforward.depth
            for level in reversed(range(depth)):
                right = leaf >> level & 1
                layer.feedforward.bias_in[:, node] = (50.0 if right else -50.0) if node else (0.01 if right else -0.01)
                node = 2 * node + 1 + right
    return encoder


def test_a_summary_of_known_trees():
    result = summarize(send_all_to(encoder(trees=3, depth=2, tokens=5), 2), ["a a b", "b a c a", "d"], fullest=2)
    assert (result["model"], result["pretraining_tokens"]) == ("a/model", 5)
    assert (result["texts"], result["tokens"], result["cut"]) == (3, 8, 0)
    assert len(result["layers"]) == 2
    for layer in result["layers"]:
        assert (layer["trees"], layer["depth"], layer["dead_leaves"]) == (3, 2, 9)
        assert layer["leaf_counts"] == [[0, 0, 8, 0]] * 3
        assert layer["used"] == [1, 0.5, 0.25] and layer["evenness"] == [None, 0, 0]
        assert layer["decision_entropy"] == [pytest.approx(math.log(2), abs=1e-4), pytest.approx(0, abs=1e-9)]
        assert layer["near_zero"] == [1, 0] and layer["mean_near_zero"] == 0.5
        assert layer["mean_decision_entropy"] == pytest.approx(math.log(2) / 2, abs=1e-4)
        assert layer["node_entropy"] == [[pytest.approx(math.log(2), abs=1e-4), None, pytest.approx(0, abs=1e-9)]] * 3
        assert [(leaf["tree"], leaf["leaf"], leaf["tokens"]) for leaf in layer["fullest"]] == [(0, 2, 8), (1, 2, 8)]
        assert layer["fullest"][0]["top"] == [["a", 4, 1], ["b", 2, 1], ["c", 1, 1], ["d", 1, 1]]


def test_fractions_of_tokens_and_the_order_of_leaves():
    """Random trees, against the leaves of the tokens one by one."""
    inspected = encoder(depth=1, layers=1)
    texts = ["a b c d", "e f g h", "i j a c", "a a a"]
    result = summarize(inspected, texts, fullest=5)
    [layer] = result["layers"]
    pairs = []
    for text in texts:
        traced = trace(inspected, text)
        pairs += [(token, leaf) for token, [[leaf]] in zip(traced["tokens"], traced["leaves"], strict=True)]
    assert layer["leaf_counts"] == [[sum(leaf == index for _, leaf in pairs) for index in range(2)]]
    counts = [leaf["tokens"] for leaf in layer["fullest"]]
    assert counts == sorted(counts, reverse=True) and all(counts)
    for leaf in layer["fullest"]:
        for token, count, fraction in leaf["top"]:
            assert count == pairs.count((token, leaf["leaf"]))
            assert fraction == pytest.approx(count / sum(name == token for name, _ in pairs))


def test_texts_are_cut_at_the_positions():
    result = summarize(encoder(), ["a " * 20, "b"], 1)
    assert (result["cut"], result["tokens"]) == (1, 9)
    assert len(trace(encoder(), "a " * 20)["tokens"]) == 8
    assert "texts cut at the encoder's last position: 1\n" in render_summary(result, [])


def test_texts_without_tokens():
    with pytest.raises(UserError, match="the tokenizer of a/model finds no tokens"):
        summarize(encoder(), ["\u00a0"], 1)


def test_tables_of_many_trees_show_the_first():
    many = encoder(trees=6, depth=2)
    text = render_summary(summarize(many, ["a b"], 1), [trace(many, "a b")])
    assert "Leaf of each token, trees 0 to 3 of 6" in text and " of tree " in text
    first = trace(many, "a")["leaves"][0][0]
    assert len(first) == 6
    few = send_all_to(encoder(trees=2, depth=2), 3)
    assert "a      3 3  3 3\n" in render_summary(summarize(few, ["a b"], 1), [trace(few, "a b")])


def sizes(path):
    """Width and height of a PNG, from its header."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24])


@pytest.mark.parametrize(("trees", "depth", "layers"), [(1, 1, 1), (2, 5, 5)])
def test_pictures_of_all_sizes(tmp_path, trees, depth, layers):
    result = summarize(encoder(trees, depth, layers), ["a b c d e f $ _", "g h i j"], 1)
    draw_summary(result | {"model": "cost $5 and $6"}, tmp_path / "one.png")
    over = [result | {"pretraining_tokens": tokens} for tokens in (10, 20)]
    draw_over_training(over, tmp_path / "training.png")
    draw_over_training([result, result], tmp_path / "unknown.png")
    for name in ("one", "training", "unknown"):
        assert min(sizes(tmp_path / f"{name}.png")) > 300


def test_the_table_over_training_has_a_row_for_each_model():
    results = [
        summarize(send_all_to(encoder(tokens=tokens), leaf), ["a b"], 1) for tokens, leaf in ((1e6, 0), (2e6, 3))
    ]
    table = render_over_training(results)
    assert table.startswith("Dead leaves\nlayer                       0  1\nmodel (1.0 million tokens)  3  3\n")
    assert table.count("model (2.0 million tokens)") == 4
