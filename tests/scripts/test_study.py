"""A study trains what `ultrafastbert pretrain` trains, resumes, and computes recovered fractions as defined."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests.scripts.helpers import SCRIPTS, load_script
from ultrafastbert.cli import parse_arguments
from ultrafastbert.pretraining.trainer import pretrain
from ultrafastbert.runs.directory import METRICS
from ultrafastbert.runs.reporter import read_metrics
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.sizes import DenseSize, NoSize, parse_size

STUDIES = sorted((SCRIPTS.parent / "configs" / "studies").glob("*.yaml"))
MODELS = {"none": {"model.fff": "none"}, "tree": {"model.fff": "1x3"}}
MODEL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TRAIN = {"max_steps": 6, "batch_size": 8, "micro_batch_size": 4, "precision": "fp32", "eval_sequences": 16}


@pytest.fixture
def write_study(packed_directory, tmp_path):
    """Writes a study file; keywords are options of the study, or of its training section."""

    def write(models=MODELS, seeds=2, **train):
        content = {"models": models, "seeds": seeds, "workers": 2, "timing_seconds": 0.01, "model": MODEL}
        content |= {"data": {"source": str(packed_directory)}, "train": TRAIN | train}
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump(content | {"output_dir": str(tmp_path / "out")}, sort_keys=False))
        return file

    return write


def start(file):
    command = [sys.executable, str(SCRIPTS / "study.py"), str(file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)


def finish(process):
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


@pytest.mark.slow
def test_a_study_compares_what_pretrain_trains(write_study, make_arguments, tmp_path):
    file, out = write_study(), tmp_path / "out"
    code, output, errors = finish(start(file))
    assert code == 0, errors
    models = json.loads((out / "study.json").read_text())["models"]
    assert [model["model"] for model in models] == list(MODELS)
    assert [model["used"] for model in models] == [0, 4]
    assert models[0]["parameters"] < models[1]["parameters"]
    assert [len(seed["leaves_used"]) for model in models for seed in model["seeds"]] == [0, 0, 2, 2]
    assert (out / "study.md").read_text() in output and (out / "study.png").stat().st_size > 0
    assert "microseconds" not in " ".join(models[0]) and models[1]["training_microseconds"] > 0

    alone = make_arguments(fff="1x3", seed=1, output_dir=tmp_path / "alone", **TRAIN)
    pretrain(alone)
    last = read_metrics(tmp_path / "alone" / METRICS)[-1]
    assert models[1]["seeds"][1]["validation_loss"] == last["validation_loss"]

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert finish(start(file))[0] == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}  # nothing trained again


def test_recovered_fractions_are_paired_by_seed():
    def model(fff, *losses):
        return {"model": fff, "fff": fff, "used": 1, "seeds": [{"validation_loss": loss} for loss in losses]}

    models = [model("none", 5.0, 4.0), model("1x3", 4.5, 3.9), model("dense-8", 4.0, 3.0)]
    study = load_script("study")
    assert study.recovered(models) == {
        "none": [0.0, 0.0],
        "1x3": [pytest.approx(0.5), pytest.approx(0.1)],
        "dense-8": [1.0, 1.0],
    }
    assert study.recovered(models[1:]) == {}  # without the control there is nothing to compare with


@pytest.mark.slow
def test_a_study_that_was_stopped_resumes(write_study, tmp_path):
    file = write_study({"tree": {"model.fff": "1x3"}}, seeds=1, max_steps=1500)
    process, log = start(file), tmp_path / "out" / "runs" / "tree" / "seed-0.log"
    while not (log.with_suffix("") / METRICS).exists():
        assert process.poll() is None, finish(process)
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code, _, errors = finish(process)
    assert code == 128 + signal.SIGTERM and "the same command resumes" in errors
    assert "saved in" in log.read_text() and not (tmp_path / "out" / "study.md").exists()

    assert finish(start(file))[0] == 0
    assert "resum" in log.read_text()

    write_study({"tree": {"model.fff": "1x3"}}, seeds=1, max_steps=499)
    code, _, errors = finish(start(file))
    assert code == 1 and "different settings: train.max_steps was 1500 and is 499" in errors


@pytest.mark.parametrize(
    "models, message",
    [
        ({"x": {"model.fff": "1y"}}, "model.fff is '1y'; it should be TREESxDEPTH"),
        ({"x": {"model.depth": 3}}, "model.depth"),
    ],
)
def test_wrong_options_end_the_study_before_it_trains(write_study, tmp_path, capsys, models, message):
    study = load_script("study")
    arguments = study.parse_arguments(study.StudyArguments, ["--config", str(write_study(models))])
    with pytest.raises(SystemExit):
        study.main(arguments)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()


def test_a_training_that_fails_stops_the_study(write_study, tmp_path):
    study = load_script("study")
    file = write_study({"x": {"model.fff": "1x3", "model.num_attention_heads": 3}}, seeds=1)
    with pytest.raises(UserError, match="the training of x failed; see .*seed-0.log"):
        study.main(study.parse_arguments(study.StudyArguments, ["--config", str(file)]))
    assert "multiple of num_attention_heads" in (tmp_path / "out" / "runs" / "x" / "seed-0.log").read_text()


@pytest.mark.parametrize("file", STUDIES, ids=lambda path: path.stem)
def test_the_studies_of_the_repository_are_complete(file, tmp_path):
    study = load_script("study")
    arguments = parse_arguments(study.StudyArguments, ["--config", str(file), "--output_dir", str(tmp_path)])
    runs = study.plan(arguments)
    sizes = [parse_size(run.arguments.model.fff) for run in runs if run.seed == 0]
    assert len(runs) == arguments.seeds * len(sizes) and len(set(sizes)) == len(sizes)
    assert any(isinstance(size, NoSize) for size in sizes) and any(isinstance(size, DenseSize) for size in sizes)
