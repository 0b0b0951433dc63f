"""Whole runs: what they write, that they resume bit for bit, and what stops them."""

import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from tests.distillation.helpers import BERT, arguments, make_teacher, save_teacher, write_texts
from ultrafastbert import (
    UltraFastBertForMaskedLM,
    UltraFastBertForQuestionAnswering,
    UltraFastBertForSequenceClassification,
    UltraFastBertForTokenClassification,
    UltraFastBertModel,
)
from ultrafastbert.distillation import trainer as module
from ultrafastbert.distillation.trainer import Trainer, distill
from ultrafastbert.inference.optimize import optimize_for_inference
from ultrafastbert.runs.reporter import read_metrics
from ultrafastbert.utils.errors import Interrupted, UserError


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts") / "texts.txt")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher"), **BERT)


@pytest.fixture(scope="module")
def finished(teacher, texts, tmp_path_factory):
    output = tmp_path_factory.mktemp("finished") / "run"
    distill(arguments(teacher, texts, output))
    return output


def weights(output):
    return load_file(output / "final" / "model.safetensors")


def losses(output):
    """Without times, which differ between runs."""
    lines = read_metrics(output / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_what_a_run_writes(finished, teacher):
    names = {path.name for path in finished.iterdir() if not path.name.startswith(".lock")}
    assert names == {"final", "checkpoints", "metrics.jsonl", "config.yaml"}
    model, tokenizer = (loader.from_pretrained(finished / "final") for loader in (AutoModel, AutoTokenizer))
    assert isinstance(model, UltraFastBertModel) and model.config.feedforward_sizes == ["1x2x4"] * 2
    assert tokenizer("w1 w2")["input_ids"] == AutoTokenizer.from_pretrained(teacher)("w1 w2")["input_ids"]
    assert all(layer.feedforward.is_split for layer in model.layers)
    record = json.loads((finished / "final" / "distillation.json").read_text())
    assert record["step"] == 12 and record["teacher"] == teacher and len(record["unexplained"]) == 2
    assert record["hidden_unexplained"] > 0 and -1 < record["cosine"] < 1 and record["divergence"] is None
    lines = read_metrics(finished / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in lines if "cosine" in line] == [0, 6, 12]
    assert lines[0]["fit_unexplained"] == record["unexplained"]


def test_the_student_is_fast_too(finished):
    model = AutoModel.from_pretrained(finished / "final").eval()
    fast = optimize_for_inference(model, dtype="float32", int8=False, verbose=False)
    ids, mask = torch.arange(5, 25).view(2, 10), (torch.arange(10) < torch.tensor([10, 4])[:, None]).long()
    with torch.no_grad():
        expected, output = (m(ids, mask).last_hidden_state[mask.bool()] for m in (model, fast))
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


def test_embeddings_stay_those_of_the_teacher(finished, teacher):
    before, after = (AutoModel.from_pretrained(path).state_dict() for path in (teacher, finished / "final"))
    for name in before:
        changed = not torch.equal(before[name], after[name]) if name in after else True
        assert changed == ("embeddings." not in name), name


def test_training_brings_the_student_closer(teacher, texts, tmp_path):
    distill(
        arguments(teacher, texts, tmp_path / "run", max_steps=150, lr=5e-3, eval_every=1000, checkpoint_every=1000)
    )
    first, last = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "cosine" in line]
    assert last["hidden_unexplained"] < 0.8 * first["hidden_unexplained"]
    assert 1 - last["cosine"] < 0.8 * (1 - first["cosine"])


@pytest.mark.parametrize("step", [0, 4, 8])
def test_a_run_resumes_where_it_stopped(finished, teacher, texts, tmp_path, step, monkeypatch):
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    shutil.rmtree(output / "final")
    for path in (output / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    distill(arguments(teacher, texts, output))
    torch.testing.assert_close(weights(output), weights(finished), rtol=0, atol=0)
    assert losses(output) == losses(finished)


def test_a_signal_stops_a_run_which_then_resumes(finished, teacher, texts, tmp_path, monkeypatch, sigint):
    step = Trainer._step

    def interrupted(self):
        step(self)
        if self.progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(Interrupted, match="after step 5.*the same command resumes from there"):
        distill(arguments(teacher, texts, tmp_path / "run"))
    monkeypatch.undo()
    distill(arguments(teacher, texts, tmp_path / "run"))
    torch.testing.assert_close(weights(tmp_path / "run"), weights(finished), rtol=0, atol=0)


def test_a_signal_during_the_fit(teacher, texts, tmp_path, monkeypatch, sigint):
    def interrupting(*_):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(module, "fit_student", lambda *options: interrupting())
    with pytest.raises(Interrupted, match="while layers were fitted; the same command starts again"):
        distill(arguments(teacher, texts, tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_temporary_files_are_removed(teacher, texts, tmp_path):
    left_over = tmp_path / "run" / ".activations-of-a-killed-run"
    left_over.mkdir(parents=True)
    distill(arguments(teacher, texts, tmp_path / "run", max_steps=1))
    assert not list((tmp_path / "run").glob(".activations*"))


def test_a_finished_run_does_nothing_until_the_budget_is_raised(finished, teacher, texts, tmp_path, capsys):
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    distill(arguments(teacher, texts, output))
    assert "the budget is spent" in capsys.readouterr().out
    distill(arguments(teacher, texts, output, max_steps=14))
    assert "train.max_steps was 12 and is 14" in capsys.readouterr().out
    assert json.loads((output / "final" / "distillation.json").read_text())["step"] == 14


def test_another_run_in_the_directory_is_moved_aside(finished, teacher, texts, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    distill(arguments(teacher, texts, output, fff="none", resume="never", max_steps=2))
    assert (output / "earlier-1" / "final" / "model.safetensors").exists()
    assert AutoModel.from_pretrained(output / "final").config.feedforward_sizes == ["none"] * 2


@pytest.mark.parametrize(
    "options, match",
    [
        ({"fff": "1x3"}, "fff was '1x2x4' and is '1x3'"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"batch_size": 4}, "train.batch_size was 8 and is 4"),
        ({"data": {"max_length": 12}}, "data.max_length was 16 and is 12"),
    ],
)
def test_other_settings_are_refused(finished, teacher, texts, options, match):
    with pytest.raises(UserError, match=match):
        distill(arguments(teacher, texts, finished, **options))


@pytest.mark.parametrize(
    "model_class",
    [
        UltraFastBertForMaskedLM,
        UltraFastBertForSequenceClassification,
        UltraFastBertForTokenClassification,
        UltraFastBertForQuestionAnswering,
    ],
)
def test_heads(model_class, texts, tmp_path):
    """Of encoders with other options too: pre-norm, rotary positions, no biases."""
    teacher = save_teacher(tmp_path / "teacher", model_class, position_embedding="rotary")
    distill(arguments(teacher, texts, tmp_path / "run", fff="0:dense,1:2x2", max_steps=4))
    student = model_class.from_pretrained(tmp_path / "run" / "final")
    assert student.config.feedforward_sizes == ["dense-24", "2x2"]
    record = json.loads((tmp_path / "run" / "final" / "distillation.json").read_text())
    assert record["divergence"] > 0 and record["unexplained"][0] is None and record["unexplained"][1] > 0


def test_skipped_steps_do_not_change_the_weights(teacher, texts, tmp_path, monkeypatch):
    loss = Trainer._loss

    def broken(self, batch, seed):
        return loss(self, batch, seed) * (float("nan") if seed in (3, 4) else 1)

    monkeypatch.setattr(Trainer, "_loss", broken)
    distill(arguments(teacher, texts, tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "final" / "distillation.json").read_text())["skipped"] == 2
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())
    with pytest.raises(UserError, match=r"not finite in 2 steps in a row \(train.max_skipped_steps\)"):
        distill(arguments(teacher, texts, tmp_path / "again", max_skipped_steps=2))


def test_a_budget_that_the_fit_spends(teacher, texts, tmp_path):
    options = arguments(teacher, texts, tmp_path / "run")
    options.budget_hours = 1e-9
    with pytest.raises(UserError, match="which fitting the layers has spent .* the fit is kept"):
        distill(options)
    options.budget_hours = 1.0
    distill(options)
    assert (tmp_path / "run" / "final").exists()


def test_a_student_is_no_teacher(finished, texts, tmp_path):
    with pytest.raises(UserError, match="layer 0 is 1x2x4; a model whose feedforward layers are all dense is needed"):
        distill(arguments(str(finished / "final"), texts, tmp_path / "run"))


def test_layers_that_the_model_does_not_have(teacher, texts, tmp_path):
    with pytest.raises(UserError, match="in which layer 2 has a size; layers are 0 to 1"):
        distill(arguments(teacher, texts, tmp_path / "run", fff="0-2:1x2"))
    assert make_teacher(**BERT).config.num_hidden_layers == 2
