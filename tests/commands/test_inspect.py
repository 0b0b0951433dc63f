"""`ultrafastbert inspect` on models and checkpoints of pretraining."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from ultrafastbert.cli import main
from ultrafastbert.inspection import leaves

PNG = b"\x89PNG"


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Runs the command in an empty directory; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    ctrl_c = signal.getsignal(signal.SIGINT)  # which the command sets

    def command(*arguments):
        main("inspect", [*map(str, arguments)])
        return capsys.readouterr().out

    yield command
    signal.signal(signal.SIGINT, ctrl_c)


def test_a_model_in_full(command, small_model, tmp_path):
    (tmp_path / "texts.txt").write_text("w1 w2 w3\n\nw1 w1 w4 w5 w6 w1\n")
    out = command(small_model, "--text", "w1 w2", "--text", "w7", "--file", "texts.txt", "--output_dir", "a/b")
    assert (tmp_path / "a" / "b" / "trees.png").read_bytes().startswith(PNG)
    content = json.loads((tmp_path / "a" / "b" / "trees.json").read_text())
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["trees.json", "trees.png"]
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
    for text, traced in zip(texts[:2], traces, strict=True):
        with (
            torch.no_grad(),
            feedforward.register_forward_pre_hook(lambda layer, x: taken.update(leaf=leaves(layer, x[0]))),
        ):
            model(**tokenizer(text, return_tensors="pt"))
        assert traced["tokens"] == tokenizer.tokenize(text, add_special_tokens=True)
        assert traced["leaves"] == [[place] for place in taken["leaf"][0].tolist()]
        for token, [[leaf]] in zip(traced["tokens"], traced["leaves"], strict=True):
            assert f"\n{token:{len('layer')}}  {leaf}\n" in out
    assert "4 texts, " in out and "few tokens for 8 leaves" in out
    assert out.endswith("Written: a/b/trees.png, a/b/trees.json\n")


def test_the_output_directory_has_a_default(command, small_model, tmp_path):
    assert command(small_model, "--text", "w1").endswith("Written: out/inspect/trees.png, out/inspect/trees.json\n")
    assert (tmp_path / "out" / "inspect" / "trees.png").read_bytes().startswith(PNG)


def test_texts_and_files_may_be_repeated_or_listed(command, small_model, tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"w1 w{ord(name) - ord('a')}\n")
    out = command(
        small_model, *("--text", "w1", "w2", "--text", "w3"), *("--file", "a.txt", "--file", "b.txt", "c.txt")
    )
    assert "6 texts, 9 tokens" in out and out.count("Leaf of each token") == 3


def test_texts_longer_than_the_positions_are_cut_and_counted(command, small_model):
    long = " ".join(["w1"] * 100)
    out = command(small_model, "--text", long, "w2", "--leaves", "1")
    assert "texts cut at the encoder's last position: 1\n" in out
    assert "2 texts, 33 tokens" in out  # 32 positions, and this tokenizer adds no special tokens


def test_a_run_over_training(command, small_run, tmp_path):
    out = command(small_run, "--text", "w1 w2 w3 w4", "--output_dir", "inspected")
    results = json.loads((tmp_path / "inspected" / "trees.json").read_text())["models"]
    assert [Path(result["model"]).name for result in results] == ["step-4", "step-8", "step-12"]
    tokens = [result["pretraining_tokens"] for result in results]
    assert tokens == sorted(tokens) and tokens[0] > 0
    assert "Dead leaves\n" in out and out.count("step-8 (0.0 million tokens)") == 4
    assert f"{small_run}/checkpoints/step-12: 2 layers of 2x3" in out
    assert (tmp_path / "inspected" / "trees.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", " "], "error: text is ' '; it should contain a word"),
        ([], "error: there is no text to inspect: neither --text nor --file is given"),
        (["--file", "blank.txt"], "error: there is no text to inspect: blank.txt has none"),
        (["--file", "gone.txt"], "error: file gone.txt does not exist"),
        (["--file", "."], "error: file . is not a file"),
        (["--file", "texts.doc"], "error: texts.doc is of an unknown kind"),
        (["--file", "broken.jsonl"], "error: broken.jsonl, line 2 is not valid JSON"),
        (["--text", "w1", "--output_dir", "blank.txt"], "error: output_dir blank.txt cannot be written: "),
        (["--text", "w1", "--output_dir", "blank.txt/a"], "error: output_dir blank.txt/a cannot be written: "),
        (["--text", "w1", "--output_dir", "taken"], "error: taken/trees.png is a directory; it should be a file"),
    ],
)
def test_errors_are_messages_before_the_work(command, small_model, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("ultrafastbert.commands.inspect.load_encoder", lambda _: pytest.fail("a model was loaded"))
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "texts.doc").write_text("w1")
    (tmp_path / "broken.jsonl").write_text('{"text": "w1"}\n{\n')
    (tmp_path / "taken" / "trees.png").mkdir(parents=True)
    with pytest.raises(SystemExit) as exit:
        command(small_model, *arguments)
    assert exit.value.code == 1
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("option", ["--leaves", "--max_texts"])
def test_wrong_options_are_named(command, small_model, capsys, option):
    with pytest.raises(SystemExit) as exit:
        command(small_model, "--text", "w1", option, 0)
    assert exit.value.code == 2
    assert f"{option[2:]} is 0; it should be greater than 0" in capsys.readouterr().err


def test_models_with_other_trees_are_not_compared(command, small_run, small_model, capsys):
    with pytest.raises(SystemExit) as exit:
        command(small_run / "checkpoints" / "step-12", small_model, "--text", "w1")
    assert exit.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: model {small_model} has other trees than ") and "step-12; models" in error


def test_earlier_results_stay_until_there_are_new_ones(command, small_model, tmp_path):
    earlier = tmp_path / "out" / "trees.json"
    earlier.parent.mkdir()
    earlier.write_text("earlier")
    with pytest.raises(SystemExit):
        command("no/model/here", "--text", "w1", "--output_dir", "out")
    assert earlier.read_text() == "earlier" and list(earlier.parent.iterdir()) == [earlier]
    command(small_model, "--text", "w1", "--output_dir", "out")
    assert "models" in json.loads(earlier.read_text())


def test_the_reader_of_a_pipe_may_close_it(monkeypatch, tmp_path, small_model):
    monkeypatch.chdir(tmp_path)
    reading, writing = os.pipe()
    os.close(reading)
    ctrl_c = signal.getsignal(signal.SIGINT)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        main("inspect", [small_model, "--text", *["w1 w2"] * 1000])
        print("later output is dropped", flush=True)
    signal.signal(signal.SIGINT, ctrl_c)
    assert (tmp_path / "out" / "inspect" / "trees.png").exists()
