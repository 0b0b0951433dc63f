"""Directories of converted encoders: weights, tokenizers, modules of sentence-transformers, and the comparison."""

import fnmatch
import json
import shutil

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, pipeline

import ultrafastbert
from tests.conversion.bert_family import MODELS, assert_same_outputs, write
from ultrafastbert.conversion import encoder, files
from ultrafastbert.conversion.encoder import convert_encoder
from ultrafastbert.conversion.files import ConversionError

TEXT = ["the other thing is in there", "no"]


@pytest.mark.parametrize("family, head", [model for model in MODELS if model[1] != "ForPreTraining"])
def test_a_directory_is_converted_with_its_tokenizer(family, head, tmp_path):
    original = write(tmp_path / "source", family, head)
    model, difference = convert_encoder(tmp_path / "source", tmp_path / "ours")
    assert 0 <= difference < 1e-5
    assert_same_outputs(type(model).from_pretrained(tmp_path / "ours").eval(), original, head)
    expected, actual = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("source", "ours"))
    assert actual(TEXT).data == expected(TEXT).data and len(actual(TEXT)["input_ids"][0]) > 10
    assert actual.mask_token == expected.mask_token
    assert actual.model_max_length == model.config.max_position_embeddings  # so that truncation=True is enough


def test_a_model_in_half_precision_passes_the_comparison(tmp_path):
    write(tmp_path / "source", "xlm-roberta", "ForMaskedLM", dtype=torch.bfloat16)
    model, difference = convert_encoder(tmp_path / "source", tmp_path / "ours")
    assert model.dtype == torch.bfloat16 and difference < 1e-5


def test_pipelines_take_the_converted_model(tmp_path):
    write(tmp_path / "source", "bert", "ForMaskedLM")
    convert_encoder(tmp_path / "source", tmp_path / "ours")
    expected, actual = (pipeline("fill-mask", str(tmp_path / name))("the [MASK].") for name in ("source", "ours"))
    assert [one["token"] for one in actual] == [one["token"] for one in expected]


def test_files_of_the_vocabulary_are_copied(tmp_path):
    """A tokenizer that is stored as vocab.json and merges.txt alone is read, and keeps these files."""
    write(tmp_path / "source", "roberta", "Model")
    content = json.loads((tmp_path / "source" / "tokenizer.json").read_text())["model"]
    (tmp_path / "source" / "vocab.json").write_text(json.dumps(content["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in content["merges"])
    (tmp_path / "source" / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (tmp_path / "source" / "tokenizer.json").unlink()
    convert_encoder(tmp_path / "source", tmp_path / "ours")
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "ours" / name).read_text() == (tmp_path / "source" / name).read_text()
    assert (tmp_path / "ours" / "tokenizer.json").is_file()


@pytest.fixture
def source(tmp_path):
    write(tmp_path / "source", "bert", "Model")
    return tmp_path / "source"


def make_sentence_transformer(source):
    pytest.importorskip("sentence_transformers", minversion="6")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    parts = [modules.Transformer(str(source), max_seq_length=16), modules.Pooling(24, pooling_mode="mean")]
    parts += [modules.Dense(24, 8), modules.Normalize()]
    return SentenceTransformer(modules=parts)


def test_a_model_of_sentence_transformers_keeps_its_modules(source, tmp_path):
    original = make_sentence_transformer(source)
    original.save(str(tmp_path / "sentences"))
    convert_encoder(tmp_path / "sentences", tmp_path / "ours")
    converted = type(original)(str(tmp_path / "ours"))
    assert isinstance(converted[0].auto_model, ultrafastbert.UltraFastBertModel)
    assert [type(module) for module in converted] == [type(module) for module in original]
    texts = [*TEXT, " ".join(TEXT * 9)]  # the last one is truncated
    torch.testing.assert_close(converted.encode(texts), original.encode(texts), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "modules, problem",
    [
        ("{", "is not a list of modules"),
        ([{"idx": 0}], "is not a list of modules"),
        ([{"path": "../elsewhere", "type": "a.Pooling"}], "names ../elsewhere; it should be a directory below"),
        ([{"path": "1_Pooling", "type": "a.Pooling"}], "names 1_Pooling, which is missing"),
    ],
)
def test_wrong_modules_are_refused(source, tmp_path, modules, problem):
    (source / "modules.json").write_text(modules if isinstance(modules, str) else json.dumps(modules))
    with pytest.raises(ConversionError, match=problem):
        convert_encoder(source, tmp_path / "ours")
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_normalize_needs_no_directory(source, tmp_path):
    modules = [{"path": "", "type": "a.Transformer"}, {"path": "1_Normalize", "type": "a.Normalize"}]
    (source / "modules.json").write_text(json.dumps(modules))
    convert_encoder(source, tmp_path / "ours")
    assert (tmp_path / "ours" / "modules.json").is_file()


@pytest.mark.parametrize("change", [0.01, float("nan")])
def test_a_wrong_conversion_is_refused_and_leaves_nothing_behind(source, tmp_path, monkeypatch, change):
    from_bert = encoder.from_bert

    def wrong(original):
        model = from_bert(original)
        with torch.no_grad():
            model.layers[0].attention.qkv_proj.bias[-1] += change
        return model

    monkeypatch.setattr(encoder, "from_bert", wrong)
    with pytest.raises(ConversionError, match="outputs of the converted model differ by .*; it should be at most"):
        convert_encoder(source, tmp_path / "ours")
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_a_missing_tokenizer_is_an_error(source, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    with pytest.raises(ConversionError, match="source has no tokenizer; it should have tokenizer.json or vocab.txt"):
        convert_encoder(source, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_damaged_tokenizer_is_an_error(source, tmp_path):
    (source / "tokenizer.json").write_text("{}")
    with pytest.raises(ConversionError, match="the tokenizer in .*source cannot be loaded"):
        convert_encoder(source, tmp_path / "ours")


def test_a_tokenizer_with_more_tokens_than_the_model_is_an_error(source, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens(["new", "newer", "newest", "last", "more", "most"])
    tokenizer.save_pretrained(source)
    with pytest.raises(ConversionError, match="the tokenizer has 51 tokens; the model has 50"):
        convert_encoder(source, tmp_path / "ours")


def test_an_existing_directory_is_not_overwritten(source, tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not an empty directory"):
        convert_encoder(source, tmp_path / "ours")
    assert (tmp_path / "ours" / "note.txt").read_text() == "mine"


@pytest.mark.parametrize("safe", [True, False])
def test_a_model_on_the_hub_is_downloaded_without_other_formats(source, tmp_path, monkeypatch, safe):
    (source / "onnx").mkdir()
    (source / "onnx" / "model.onnx").touch()
    (source / "onnx" / "config.json").touch()
    (source / "tf_model.h5").touch()
    if safe:
        (source / "pytorch_model.bin").touch()
    else:
        torch.save(AutoModel.from_pretrained(source).state_dict(), source / "pytorch_model.bin")
        (source / "model.safetensors").unlink()
    downloaded = tmp_path / "downloaded"

    def snapshot_download(name, allow_patterns, ignore_patterns):
        assert name == "someone/model"
        for file in filter(type(source).is_file, source.rglob("*")):
            path = str(file.relative_to(source))
            wanted, unwanted = (
                any(fnmatch.fnmatch(path, pattern) for pattern in patterns)
                for patterns in (allow_patterns, ignore_patterns)
            )
            if wanted and not unwanted:
                (downloaded / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, downloaded / path)
        return str(downloaded)

    monkeypatch.setattr(files, "snapshot_download", snapshot_download)
    convert_encoder("someone/model", tmp_path / "ours")
    weights = "model.safetensors" if safe else "pytorch_model.bin"
    names = ["config.json", weights, "tokenizer.json", "tokenizer_config.json"]
    assert sorted(file.name for file in downloaded.rglob("*")) == names


def test_a_model_on_the_hub_that_cannot_be_reached_is_an_error(tmp_path, monkeypatch):
    def snapshot_download(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(files, "snapshot_download", snapshot_download)
    with pytest.raises(
        ConversionError, match="someone/model is not a directory .* downloaded from the Hub: no network"
    ):
        convert_encoder("someone/model", tmp_path / "ours")
