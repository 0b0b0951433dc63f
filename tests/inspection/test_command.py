"""The command that looks into trees, on models and checkpoints as pretraining leaves them."""

import json
import os
import runpy
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from ultrafastbert import UltraFastBertConfig, UltraFastBertForMaskedLM
from ultrafastbert.cli import main
from ultrafastbert.inspection.loading import find_models, load_encoder, read_texts
from ultrafastbert.inspection.regions import leaves
from ultrafastbert.pretraining.trainer import pretrain
from ultrafastbert.utils.errors import UserError

PNG = b"\x89PNG"


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory):
    return tmp_path_factory.mktemp("inspected") / "run"


@pytest.fixture
def run(run_directory, make_arguments):
    """The directory of a run of 12 steps with three checkpoints; what tests take away, they take from a copy."""
    if not run_directory.exists():
        pretrain(make_arguments(output_dir=run_directory, keep_checkpoints=9))
    return run_directory


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Runs the script in an empty directory; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    ctrl_c = signal.getsignal(signal.SIGINT)  # which the script leaves to the system

    def command(*arguments):
        main("inspect", [*map(str, arguments)])
        return capsys.readouterr().out

    yield command
    signal.signal(signal.SIGINT, ctrl_c)


def test_a_model_in_full(command, small_model, tmp_path):
    (tmp_path / "texts.txt").write_text("w1 w2 w3\n\nw1 w1 w4 w5 w6 w1\n")
    out = command(small_model, "--text", "w1 w2", "--text", "w7", "--file", "texts.txt", "--json", "a/all.json")
    assert (tmp_path / "inspect_trees.png").read_bytes().startswith(PNG)
    content = json.loads((tmp_path / "a" / "all.json").read_text())
    [result], traces = content["models"], content["traces"]
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    texts = ["w1 w2", "w7", "w1 w2 w3", "w1 w1 w4 w5 w6 w1"]
    assert (result["texts"], result["cut"]) == (4, 0)
    assert result["tokens"] == sum(len(tokenizer(text)["input_ids"]) for text in texts)
    [layer] = result["layers"]
    assert sum(layer["leaf_counts"][0]) == result["tokens"]
    assert layer["dead_leaves"] == layer["leaf_counts"][0].count(0)
    assert layer["used"][-1] == 1 - layer["dead_leaves"] / 8
    assert [len(layer[name]) for name in ("used", "evenness", "decision_entropy", "near_zero")] == [4, 4, 3, 3]

    model, taken = AutoModel.from_pretrained(small_model).eval(), {}
    feedforward = model.layers[0].feedforward
    for text, traced in zip(texts, traces, strict=False):
        with (
            torch.no_grad(),
            feedforward.register_forward_pre_hook(lambda layer, x: taken.update(leaf=leaves(layer, x[0]))),
        ):
            model(**tokenizer(text, return_tensors="pt"))
        assert traced["tokens"] == tokenizer.tokenize(text, add_special_tokens=True)
        assert traced["leaves"] == [[place] for place in taken["leaf"][0].tolist()]
        for token, [[leaf]] in zip(traced["tokens"], traced["leaves"], strict=True):
            assert f"\n{token:{len('layer')}}  {leaf}\n" in out
    assert "4 texts, " in out and "few tokens for 8 leaves" in out and "The picture is inspect_trees.png." in out


def test_texts_longer_than_the_positions_are_cut_and_counted(command, small_model):
    long = " ".join(["w1"] * 100)
    out = command(small_model, "--text", long, "w2", "--leaves", "1")
    assert "texts cut at the encoder's last position: 1\n" in out
    assert "2 texts, 33 tokens" in out  # 32 positions, and this tokenizer adds no special tokens


def test_a_run_over_training(command, run, tmp_path):
    out = command(run, "--text", "w1 w2 w3 w4", "--json", "all.json", "--output", "runs.png")
    results = json.loads((tmp_path / "all.json").read_text())["models"]
    assert [Path(result["model"]).name for result in results] == ["step-4", "step-8", "step-12"]
    tokens = [result["pretraining_tokens"] for result in results]
    assert tokens == sorted(tokens) and tokens[0] > 0
    assert "Dead leaves\n" in out and out.count("step-8 (0.0 million tokens)") == 4
    assert f"{run}/checkpoints/step-12: 2 layers of 2x3" in out
    assert (tmp_path / "runs.png").read_bytes().startswith(PNG)


def test_checkpoints_come_in_order_whatever_a_glob_says(run):
    names = [str(run / "checkpoints" / f"step-{step}") for step in (12, 4, 8)]
    expected = [names[1], names[2], names[0]]
    assert find_models([str(run / "final"), *names]) == [*expected, str(run / "final")]
    assert find_models([str(run)]) == expected


def test_a_checkpoint_loads_with_its_tokenizer(run, tmp_path, packed_directory):
    """The last checkpoint is the final model, both of a run that has ended and of one that has not."""
    text = "w1 w2 w3"
    final = load_encoder(str(run / "final"))
    inputs = final.tokenizer(text, return_tensors="pt")
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for ended in (True, False):
        if not ended:
            shutil.rmtree(copy / "final")
        encoder = load_encoder(str(copy / "checkpoints" / "step-12"))
        assert encoder.tokenizer(text)["input_ids"] == inputs["input_ids"][0].tolist()
        assert encoder.model.config.max_position_embeddings == final.model.config.max_position_embeddings
        assert encoder.tokens == final.tokens and not encoder.model.training
        with torch.no_grad():
            assert torch.equal(encoder.model(**inputs)[0], final.model(**inputs)[0])

    content = copy / "checkpoints" / "step-12" / "checkpoint.json"
    content.write_text(content.read_text().replace(str(packed_directory), str(tmp_path / "gone")))
    with pytest.raises(UserError, match=r"step-12 is of a run that has not ended, and needs .* its data: .*gone"):
        load_encoder(str(copy / "checkpoints" / "step-12"))
    (copy / "checkpoints" / "step-8" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="step-8 is damaged"):
        load_encoder(str(copy / "checkpoints" / "step-8"))


def save(directory, model, tokenizer_of):
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tokenizer_of).save_pretrained(directory)
    return str(directory)


@pytest.fixture
def other_models(tmp_path, small_model):
    """Models that cannot be looked into, by what is said of them."""
    size = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    models = {
        "is a UltraFastBertModel with no trees in its layers": UltraFastBertForMaskedLM(
            UltraFastBertConfig(**size, feedforward="dense", intermediate_size=8)
        ),
        "with trees of depth 0, which decide nothing": UltraFastBertForMaskedLM(
            UltraFastBertConfig(**size, fff_trees=4, fff_depth=0)
        ),
        "is a BertModel with no trees": BertModel(BertConfig(**size, intermediate_size=8)),
        "knows 50 tokens; its tokenizer has 60": UltraFastBertForMaskedLM(
            UltraFastBertConfig(**(size | {"vocab_size": 50}), fff_depth=2)
        ),
    }
    return {
        message: save(tmp_path / f"other-{index}", model, small_model)
        for index, (message, model) in enumerate(models.items())
    }


def test_models_that_cannot_be_looked_into(other_models, tmp_path, small_model):
    for message, directory in other_models.items():
        with pytest.raises(UserError, match=message):
            load_encoder(directory)
    with pytest.raises(UserError, match="out/no/model does not exist"):
        load_encoder("out/no/model")
    with pytest.raises(UserError, match=f"^model {tmp_path} cannot be loaded"):
        load_encoder(str(tmp_path))
    AutoModel.from_pretrained(small_model).save_pretrained(tmp_path / "alone")
    with pytest.raises(UserError, match="the tokenizer of model .*alone, which should be beside it, cannot be loaded"):
        load_encoder(str(tmp_path / "alone"))
    (tmp_path / "fresh" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="fresh is a run that has no checkpoint yet"):
        find_models([str(tmp_path / "fresh")])


def test_weights_that_are_missing_are_named(small_model, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(small_model, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    del weights["model.layers.0.feedforward.weight_in"]
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="has no weights for layers.0.feedforward.weight_in"):
        load_encoder(str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", " "], "error: text is ' '; it should have a word in it"),
        ([], "error: there is no text to look at: neither --text nor --file is given"),
        (["--file", "blank.txt"], "error: there is no text to look at: blank.txt has none"),
        (["--file", "gone.txt"], "error: file gone.txt does not exist"),
        (["--file", "."], "error: file . is not a file"),
        (["--file", "texts.doc"], "error: texts.doc is of an unknown kind"),
        (["--file", "broken.jsonl"], "error: broken.jsonl, line 2 is not valid JSON"),
        (["--text", "w1", "--output", "picture.jpg"], "error: output is picture.jpg; it should .* ends in .png"),
        (["--text", "w1", "--output", "directory.png"], "error: output is directory.png; it should be a file"),
        (["--text", "w1", "--json", "blank.txt/a.json"], "error: json blank.txt/a.json cannot be written"),
    ],
)
def test_errors_are_messages(command, small_model, tmp_path, arguments, message):
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "texts.doc").write_text("w1")
    (tmp_path / "broken.jsonl").write_text('{"text": "w1"}\n{\n')
    (tmp_path / "directory.png").mkdir()
    with pytest.raises(SystemExit, match=message):
        command(small_model, *arguments)


def test_models_of_other_shapes_are_not_compared(command, run, small_model):
    with pytest.raises(SystemExit, match=f"error: model {small_model} has other trees than .*step-12"):
        command(run / "checkpoints" / "step-12", small_model, "--text", "w1")


def test_texts_of_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n  \ntwo\n")
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n{"text": "four"}\n')
    files = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
    assert [text.strip() for text in read_texts(files, None)] == ["one", "two", "three", "four"]
    assert [text.strip() for text in read_texts(files, 3)] == ["one", "two", "three"]


def test_the_reader_of_a_pipe_may_leave(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        runpy.run_path(str(SCRIPT))["_print"]("a table\n" * 10_000)
        print("what is printed later goes nowhere", flush=True)
