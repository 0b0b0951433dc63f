"""Layers of several sizes are fitted to those of a trained encoder."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedTokenizerFast,
)

from tests.scripts.helpers import load_script
from ultrafastbert.utils.errors import UserError

WORDS = [f"w{number}" for number in range(40)]


@pytest.fixture(scope="module")
def script():
    return load_script("fit_layers")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    lines = torch.randint(len(WORDS), (400, 12), generator=generator).tolist()
    path.write_text("\n".join(" ".join(WORDS[word] for word in line) for line in lines))
    return str(path)


def save(model, directory):
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(["[PAD]", *WORDS])}, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(directory)
    model.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 2}
    model = BertModel(BertConfig(vocab_size=41, initializer_range=0.5, max_position_embeddings=16, **sizes))
    return save(model, tmp_path_factory.mktemp("bert"))


def test_larger_layers_explain_more(script, bert, texts, tmp_path, capsys):
    sizes = ["none", "dense-2", "dense-24", "1x4", "1x3x8"]
    options = {"tokens": 4500, "steps": 300, "batch_size": 256, "lr": 0.02, "layers": [1]}
    script.main(script.FitArguments(bert, [texts], sizes, output_dir=str(tmp_path / "fit"), **options))
    results = json.loads((tmp_path / "fit" / "fit.json").read_text())["results"]
    unexplained = {result["size"]: result["unexplained"][0] for result in results}
    assert unexplained["none"] > unexplained["dense-2"] > unexplained["dense-24"] > 0
    assert unexplained["none"] > unexplained["1x3x8"] and unexplained["none"] > unexplained["1x4"]
    assert unexplained["dense-24"] < 0.2  # as many neurons as the layer has
    table = (tmp_path / "fit" / "fit.md").read_text()
    assert table in capsys.readouterr().out and f"| dense-24 | 24 | {unexplained['dense-24']:.3f} |" in table


def test_what_is_recorded_is_what_the_layer_computes(script, bert, texts):
    arguments = script.FitArguments(bert, [texts], drop=0.0, tokens=900)
    model = BertModel.from_pretrained(bert).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(bert)
    layer = script.feedforward_layers(model)[0]
    lines = Path(texts).read_text().splitlines()
    lines[1] = "w1"  # is padded
    x, y = script.record(model, tokenizer, layer, lines, arguments)
    assert x.shape == y.shape == (900, 16)
    seen = {}
    layer[0].register_forward_pre_hook(lambda _, inputs: seen.setdefault("x", inputs[0]))
    layer[1].register_forward_hook(lambda _, __, output: seen.update(y=output))
    with torch.no_grad():
        model(**tokenizer(lines[0], return_tensors="pt"))
    # standardised by channel: the first text's tokens have the same differences up to a factor for each channel
    for recorded, given in ((x, seen["x"][0]), (y, seen["y"][0])):
        ratio = (recorded[:12] - recorded[0])[1:] / (given - given[0])[1:]
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(x.std(0), torch.ones(16))
    assert y.var(0).mean().item() == pytest.approx(1) and y.mean(0).abs().max() < 1e-5


def test_a_function_of_single_channels_needs_no_layer(script):
    x = torch.randn(5000, 8)
    arguments = script.FitArguments("model", ["texts"], steps=100, lr=1e-3)
    assert script.fit("none", x, x * torch.arange(8), arguments, seed=0) < 1e-3


def test_encoders_of_this_package_have_their_layers(script, small_model):
    from transformers import AutoModel

    layers = script.feedforward_layers(AutoModel.from_pretrained(small_model))
    assert [type(first).__name__ for first, _ in layers] == ["FFF"]


def test_errors(script, bert, texts, tmp_path):
    def run(model=bert, source=texts, **options):
        script.main(script.FitArguments(model, [source], ["none"], output_dir=str(tmp_path / "fit"), **options))

    with pytest.raises(UserError, match="source has .* tokens; it should have at least 10,240"):
        run()
    with pytest.raises(UserError, match="layers is 7; it should be an integer, from 0 to 1"):
        run(layers=[7])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="model .*empty cannot be loaded"):
        run(model=str(tmp_path / "empty"))
    with pytest.raises(UserError, match="does not exist"):
        run(source=str(tmp_path / "missing.txt"))
    config = DistilBertConfig(vocab_size=41, dim=16, n_heads=2, hidden_dim=24, n_layers=1)
    other = save(DistilBertModel(config), tmp_path / "other")
    with pytest.raises(UserError, match="model is a DistilBertModel; it should be BERT"):
        run(model=other)
    with pytest.raises(ValueError, match="sizes is '1y3'"):
        script.FitArguments(bert, [texts], ["1y3"])
