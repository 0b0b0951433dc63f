"""A sweep resumes where it was stopped, gives the same results in any number of processes, and mixes no settings."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.finetuning.helpers import write_glue
from ultrafastbert.finetuning import sweep
from ultrafastbert.finetuning.arguments import FinetuneArguments
from ultrafastbert.finetuning.sweep import finetune_all, fingerprint_model
from ultrafastbert.finetuning.trainer import Diverged, finetune
from ultrafastbert.utils.errors import Interrupted, UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_glue(tmp_path_factory.mktemp("glue"))


@pytest.fixture
def make(small_model, data_dir, tmp_path):
    """Arguments of a small sweep; keywords change them."""

    def make(**changes):
        options = {"model": small_model, "data_dir": str(data_dir), "tasks": "cola,stsb", "seeds": 2, "epochs": 1}
        options |= {"lr": 3e-3, "max_length": 16, "output_dir": str(tmp_path / "out")}
        return FinetuneArguments(**(options | changes))

    return make


def comparable(results: dict) -> dict:
    """Results without the times that they took."""
    results = json.loads(json.dumps(results))
    for run in (run for runs in results["tasks"].values() for run in runs):
        run.pop("seconds", None)
    return results


def stop_after(monkeypatch, number: int, error: BaseException):
    """Lets `number` trainings finish, and raises the error in the next."""
    count = iter(range(100))

    def stopping(*arguments, **options):
        if next(count) == number:
            raise error
        return finetune(*arguments, **options)

    monkeypatch.setattr(sweep, "finetune", stopping)


def test_a_sweep_writes_tables_predictions_and_models(make, tmp_path, capsys):
    results = finetune_all(make(save_models=True))
    assert comparable(results) == comparable(json.loads((tmp_path / "out" / "glue.json").read_text()))
    assert list(results["scores"]) == ["CoLA", "STS-B"]
    assert len(results["scores"]["CoLA"]["values"]) == 2
    table = (tmp_path / "out" / "glue.md").read_text()
    assert "| CoLA | matthews_correlation |" in table and table in capsys.readouterr().out
    archive = zipfile.ZipFile(tmp_path / "out" / "predictions" / "submission.zip")
    assert archive.namelist() == ["CoLA.tsv", "STS-B.tsv"]
    lines = archive.read("STS-B.tsv").decode().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 13
    assert (tmp_path / "out" / "runs" / "cola" / "seed-1" / "model" / "config.json").exists()


@pytest.mark.parametrize("finished", range(4))
def test_a_stopped_sweep_resumes(make, monkeypatch, finished, tmp_path, capsys):
    whole = finetune_all(make(output_dir=str(tmp_path / "whole")))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, finished, KeyboardInterrupt())
        finetune_all(make())
    results = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").glob("*/*/result.json")}
    assert len(results) == finished
    again = finetune_all(make())
    assert all(path.stat().st_mtime_ns == time for path, time in results.items())  # none was trained twice
    assert comparable(again) == comparable(whole)
    for name in ("CoLA.tsv", "STS-B.tsv", "submission.zip"):
        files = [tmp_path / directory / "predictions" / name for directory in ("out", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_more_seeds_and_tasks_join_the_same_table(make, monkeypatch):
    finetune_all(make(tasks="cola", seeds=1))
    apart = finetune_all(make())
    assert [len(score["values"]) for score in apart["scores"].values()] == [2, 2]
    stop_after(monkeypatch, 0, AssertionError("nothing is missing"))
    assert finetune_all(make(tasks="cola", seeds=1)) == apart


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 1e-3}, "lr was 0.003 and is 0.001"),
        ({"random_init": True}, "random_init was False and is True"),
        ({"early_stopping": 1}, "early_stopping was None and is 1"),
    ],
)
def test_results_of_other_settings_are_not_mixed(make, change, message, tmp_path):
    before = finetune_all(make(tasks="cola", seeds=1))
    with pytest.raises(UserError, match=message):
        finetune_all(make(tasks="stsb", seeds=1, **change))
    assert json.loads((tmp_path / "out" / "glue.json").read_text()) == before
    after = finetune_all(make(tasks="stsb", seeds=1, resume="never", **change))
    assert list(after["scores"]) == ["STS-B"]
    assert json.loads((tmp_path / "out" / "earlier-1" / "glue.json").read_text()) == before


def test_other_data_and_another_model_are_not_mixed(make, tmp_path, small_model):
    own = write_glue(tmp_path / "glue")
    finetune_all(make(tasks="cola", seeds=1, data_dir=str(own)))
    (own / "CoLA" / "dev.tsv").write_text("x\t1\t\tw1 w2\nx\t0\t\tw0 w2\n")
    with pytest.raises(UserError, match="data_fingerprint was"):
        finetune_all(make(tasks="cola", seeds=2, data_dir=str(own)))

    other = tmp_path / "other"
    other.mkdir()
    for path in Path(small_model).iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    assert fingerprint_model(str(other)) == fingerprint_model(small_model)  # the directory does not matter
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    assert fingerprint_model(str(other)) != fingerprint_model(small_model)


def test_a_damaged_result_is_named(make, tmp_path):
    finetune_all(make(tasks="cola", seeds=1))
    result = tmp_path / "out" / "runs" / "cola" / "seed-0" / "result.json"
    result.write_text("{")
    with pytest.raises(UserError, match="seed-0/result.json is not the result of a training"):
        finetune_all(make(tasks="cola", seeds=1))


def test_the_best_learning_rate_on_held_out_examples_is_used(make):
    results = finetune_all(make(tasks="cola", seeds=1, epochs=12, holdout=0.3, lr_sweep=[1.0, 3e-3]))
    runs = results["tasks"]["cola"]
    assert [(run["is_trial"], run["lr"]) for run in runs] == [(False, 3e-3), (True, 3e-3), (True, 1.0)]
    held_out = {run["lr"]: run["held_out"] for run in runs if run["is_trial"]}
    assert held_out[3e-3] > held_out[1.0]
    assert len(results["scores"]["CoLA"]["values"]) == 1  # trials do not count as results


def test_a_training_that_diverges_is_reported_and_not_repeated(make, monkeypatch, tmp_path):
    stop_after(monkeypatch, 1, Diverged("the loss of an epoch is nan"))
    with pytest.raises(UserError, match="1 of 3 trainings diverged .* cola, seed 1 .* lower lr"):
        finetune_all(make(tasks="cola", seeds=3))
    results = json.loads((tmp_path / "out" / "glue.json").read_text())
    assert len(results["scores"]["CoLA"]["values"]) == 2
    assert "cola, seed 1 diverged and has no score" in (tmp_path / "out" / "glue.md").read_text()
    stop_after(monkeypatch, 0, AssertionError("nothing is missing"))
    with pytest.raises(UserError, match="1 of 3 trainings diverged"):
        finetune_all(make(tasks="cola", seeds=3))


def test_unknown_tasks_and_missing_files_are_named_before_anything_is_trained(make, tmp_path):
    with pytest.raises(UserError, match="tasks: colla should be of cola, sst2"):
        finetune_all(make(tasks="stsb,colla"))
    with pytest.raises(UserError, match="RTE"):
        finetune_all(make(tasks="cola,rte"))
    assert not (tmp_path / "out" / "runs").exists()


def command(arguments: FinetuneArguments, launcher=()) -> list[str]:
    options = {"model": arguments.model, "data_dir": arguments.data_dir, "tasks": ",".join(arguments.tasks)}
    options |= {"output_dir": arguments.output_dir, "seeds": arguments.seeds, "epochs": arguments.epochs}
    options |= {"lr": arguments.lr, "max_length": arguments.max_length}
    options = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, *launcher, str(ROOT / "finetune_glue.py"), *options]


@pytest.mark.slow
def test_two_processes_divide_the_trainings_and_give_the_same_results(make, tmp_path):
    alone = finetune_all(make(output_dir=str(tmp_path / "alone")))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    subprocess.run(command(make(), launcher), env=environment, check=True, timeout=300)
    together = json.loads((tmp_path / "out" / "glue.json").read_text())
    assert comparable(together) == comparable(alone)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_sweep_resumes_after_a_signal(make, tmp_path, number):
    arguments = make(tasks="cola", seeds=40, epochs=3)
    process = subprocess.Popen(command(arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "out").glob("runs/cola/*/result.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    done = len(list((tmp_path / "out").glob("runs/cola/*/result.json")))
    assert 1 <= done < 40
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert f"{done} of 40 trainings are finished and kept" in errors and "Traceback" not in errors
    again = finetune_all(make(tasks="cola", seeds=done + 1, epochs=3))
    assert len(again["scores"]["CoLA"]["values"]) == done + 1


def test_the_exception_of_a_signal_counts_the_trainings(make, monkeypatch):
    def interrupted(*arguments, **options):
        signal.raise_signal(signal.SIGTERM)
        return finetune(*arguments, **options)

    monkeypatch.setattr(sweep, "finetune", interrupted)
    with pytest.raises(Interrupted, match="0 of 4 trainings") as raised:
        finetune_all(make())
    assert raised.value.exit_code == 128 + signal.SIGTERM
