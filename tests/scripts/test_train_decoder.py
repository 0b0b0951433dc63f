"""Decoders with different feedforward layers learn a text, and continue it."""

import json

import pytest
import torch
from torch import nn

from tests.scripts.helpers import load_script
from ultrafastbert import HardFFF
from ultrafastbert.utils.errors import UserError

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "batch_size": 4, "sequence_length": 16}


@pytest.fixture(scope="module")
def script():
    return load_script("train_decoder")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcd efgh\n" * 400)
    return str(path)


def test_decoders_learn_the_text(script, text, tmp_path, capsys):
    sizes = ["1x2", "1x1x8"]
    options = SMALL | {"steps": 90, "lr": 0.03, "prompt": "ab", "length": 12}
    script.main(script.DecoderArguments(text, sizes, output_dir=str(tmp_path / "out"), **options))
    results = json.loads((tmp_path / "out" / "decoder.json").read_text())["results"]
    assert [result["size"] for result in results] == sizes
    for result in results:
        assert 0 < result["bits_per_byte"] < 1  # of 8 for random bytes
        assert result["text"] == "abcd efgh\nabcd"
    table = (tmp_path / "out" / "decoder.md").read_text()
    assert table in capsys.readouterr().out and f"| 1x2 | 3 | {results[0]['bits_per_byte']:.3f} |" in table


def test_trees_with_leaves_grow_and_stay_balanced(script, text):
    arguments = script.DecoderArguments(text, **SMALL, steps=30)
    data, validation = script.read_bytes(arguments)
    assert (len(data), len(validation)) == (3599, 400)
    model = script.build_decoder("1x2x4", arguments)
    script.train(model, data, arguments, "1x2x4")
    (tree,) = (module for module in model.modules() if isinstance(module, HardFFF))
    assert tree.is_split and len(tree.leaf_weight_in.unique(dim=0)) == 4


def test_decoders_are_causal_and_their_cache_gives_the_same_outputs(script, text):
    arguments = script.DecoderArguments(text, **SMALL)
    model = script.build_decoder("1x3", arguments).eval()
    nn.init.normal_(model.model.layers[0].mlp.weight_out)
    batch = torch.randint(256, (1, 9))
    with torch.no_grad():
        expected, cache, logits = model(batch).logits, None, []
        for token in batch[0]:
            result = model(token.view(1, 1), past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            logits.append(result.logits)
    torch.testing.assert_close(torch.cat(logits, 1), expected)


def test_batches_are_a_function_of_the_seed(script, text):
    arguments = script.DecoderArguments(text, **SMALL)
    data = torch.arange(200, dtype=torch.uint8)
    first, again, other = (script.random_batch(data, arguments, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (4, 16) and (first.diff() == 1).all()


def test_errors(script, tmp_path):
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(UserError, match="source has 5 bytes; it should have at least 680"):
        script.main(script.DecoderArguments(str(tmp_path / "short.txt"), **SMALL))
    with pytest.raises(UserError, match="missing.txt does not exist"):
        script.main(script.DecoderArguments(str(tmp_path / "missing.txt")))
    with pytest.raises(ValueError, match="sizes is '3'"):
        script.DecoderArguments("text.txt", ["3"])
    with pytest.raises(ValueError, match="a divisor of hidden_size, 128"):
        script.DecoderArguments("text.txt", num_attention_heads=3)
    with pytest.raises(ValueError, match="source is ''"):
        script.DecoderArguments()
