"""The benchmark of training steps runs, its ratios are those of its times, and BERT learns what ours learn."""

import json
import sys

import pytest
import torch
from transformers import BertConfig

from ultrafastbert import FFF
from ultrafastbert.benchmarks.bert import build_config
from ultrafastbert.benchmarks.training import TrainingArguments
from ultrafastbert.benchmarks.training_contenders import Bert
from ultrafastbert.cli import main
from ultrafastbert.pretraining.flops import training_flops
from ultrafastbert.utils import hardware

MODELS = ["dense-24", "1x3", "1x7-blocked", "bert"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    def run(*options):
        small = ["--num_hidden_layers=2", "--hidden_size=16", "--num_attention_heads=2", "--vocabulary=50"]
        small += ["--sequences=3", "--sequence_length=8", "--seconds=0", "--device=cpu", "--baseline=dense-24"]
        small += [f"--models=[{','.join(MODELS)}]", f"--output_dir={tmp_path}"]
        main("benchmark", ["training", *small, *options])
        return json.loads((tmp_path / "training.json").read_text())

    return run


def rows_of(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ")]
    return {cells[1]: cells[2:-1] for cells in ([c.strip() for c in line.split("|")] for line in lines)}


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_models_take_turns_and_are_compared(run, tmp_path, precision, capsys):
    result = run(f"--precision={precision}")
    rows = {row["name"]: row for row in result["results"]}
    assert list(rows) == MODELS and result["cases"] == [{"together": True}]
    assert f", {'bf16' if precision == 'bf16' else 'fp32'}, not compiled" in (tmp_path / "training.md").read_text()
    for row in rows.values():
        assert 0 < row["least"] <= row["median"] and row["calls"] >= 6
        assert row["tokens_per_second"] * row["median"] == pytest.approx(24)
        assert row["memory"] is None and row["mfu"] is None
    assert rows["1x3"]["parameters"] - rows["dense-24"]["parameters"] == 2 * (15 * (16 + 1 + 16) - 24 * 32)
    table = rows_of(tmp_path / "training.md")
    speed, base = rows["bert"]["tokens_per_second"], rows["dense-24"]["tokens_per_second"]
    assert table["bert"][1] == f"{speed:,.0f} ({speed / base:.3g}x)"
    assert table["bert"][3:] == ["–", "–"]
    assert (tmp_path / "training.md").read_text() in capsys.readouterr().out
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")


def test_what_does_not_fit_together_is_timed_alone(run, tmp_path, monkeypatch, capsys):
    """With memory for two models, and for none of trees."""
    Accelerator = sys.modules["accelerate"].Accelerator
    prepare, free, held = Accelerator.prepare, Accelerator.free_memory, []

    def take(accelerator, model, optimizer):
        held.append(model)
        if len(held) > 2 or any(isinstance(module, FFF) for module in model.modules()):
            raise torch.OutOfMemoryError
        return prepare(accelerator, model, optimizer)

    monkeypatch.setattr(Accelerator, "prepare", take)
    monkeypatch.setattr(Accelerator, "free_memory", lambda self: (held.clear(), free(self)))
    result = run()
    assert [row["name"] for row in result["results"]] == ["dense-24", "bert"] and {"together": True} not in result[
        "cases"
    ]
    assert rows_of(tmp_path / "training.md")["1x3"] == ["–"] * 5
    text = (tmp_path / "training.md").read_text()
    assert "Not timed (out of memory): 1x3, 1x7-blocked." in text
    assert "alone" in text and "1x3 is not timed" in capsys.readouterr().err


def test_mfu_is_the_fraction_of_the_peak(run, monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "PEAKS", {hardware.processor(): hardware.Peak(1.0, {torch.float32: 1e15})})
    rows = {row["name"]: row for row in run()["results"]}
    for name, neurons in zip(MODELS, (24, 4, 8, 64), strict=True):
        config = BertConfig(hidden_size=16, num_hidden_layers=2, intermediate_size=neurons, vocab_size=50)
        flops = training_flops(config, sequences=3, sequence_length=8, masked=2)
        assert rows[name]["mfu"] * rows[name]["median"] == pytest.approx(flops / 1e15)
    assert rows_of(tmp_path / "training.md")["1x3"][4] == f"{rows['1x3']['mfu']:.1%}"


def test_bert_has_the_loss_of_the_masked_positions():
    small = {"sequences": 2, "sequence_length": 6, "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}
    arguments = TrainingArguments(vocabulary=20, **small)
    bert = Bert(build_config(arguments, "1x0", 6)).eval()
    tokens, labels = torch.randint(5, 20, (2, 2, 6))
    positions = torch.tensor([[0, 3], [5, 1]])
    labels[0, 3] = -100  # special, so not predicted
    chosen = bert.bert(tokens).logits[[0, 1, 1], [0, 5, 1]]
    expected = torch.nn.functional.cross_entropy(chosen, labels[[0, 1, 1], [0, 5, 1]])
    torch.testing.assert_close(bert(input_ids=tokens, labels=labels, masked_positions=positions).loss, expected)


@pytest.mark.parametrize(
    "options, named",
    [
        (["--models=[]"], "models"),
        (["--models=[3by4]"], "3by4"),
        (["--models=[1x3-fast]"], "1x3-fast"),
        (["--models=[bert,bert]"], "each once"),
        (["--baseline=1x11"], "baseline"),
        (["--sequences=0"], "sequences"),
        (["--vocabulary=5"], "vocabulary"),
        (["--num_attention_heads=3"], "num_attention_heads"),
    ],
)
def test_wrong_options_are_named(run, options, named, capsys):
    with pytest.raises(SystemExit) as raised:
        run(*options)
    assert raised.value.code == 2 and named in capsys.readouterr().err
