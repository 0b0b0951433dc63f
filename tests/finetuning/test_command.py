"""The command line of finetune_glue.py: defaults, errors, and own data from files to a model in a pipeline."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import pipeline

from tests.finetuning.helpers import texts
from ultrafastbert.cli import parse_arguments
from ultrafastbert.finetuning.arguments import FinetuneArguments, Recipe

ROOT = Path(__file__).parents[2]
DEFAULTS = ROOT / "configs" / "glue.yaml"


def parse(*argv):
    return parse_arguments(FinetuneArguments, ["--model=m", *argv])


def test_the_file_of_defaults_agrees_with_the_code():
    stated = yaml.safe_load(DEFAULTS.read_text())
    assert parse() == FinetuneArguments(model="m")
    code = {field.name: field.default for field in dataclasses.fields(FinetuneArguments)}
    assert {name: tuple(value) if isinstance(value, list) else value for name, value in stated.items()} == {
        name: code[name] for name in stated
    }


def test_tasks_are_a_list_or_separated_by_commas(tmp_path):
    assert parse("--tasks=cola, rte").tasks == parse("--tasks", "[cola, rte]").tasks == ["cola", "rte"]
    config = tmp_path / "mine.yaml"
    config.write_text("tasks: [mrpc]\nlr: 1e-4\n")
    arguments = parse("--config", str(config), "--epochs=2")
    assert (arguments.tasks, arguments.lr, arguments.epochs, arguments.batch_size) == (["mrpc"], 1e-4, 2, 16)


def test_an_option_is_accepted_under_its_earlier_name():
    assert parse("--own.train=a.csv", "--own.validation_share=0.2").own.validation_fraction == 0.2


def test_settings_are_exactly_the_recipe():
    settings = parse("--tasks=cola", "--seeds=3").settings
    assert settings == FinetuneArguments(model="other", data_dir="x", output_dir="y").settings
    assert set(settings) == {field.name for field in dataclasses.fields(Recipe)}
    assert json.loads(json.dumps(settings)) == settings


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epochs=0"], "epochs is 0; it should be greater than 0"),
        (["--warmup=2"], "warmup is 2.0; it should be from 0 to 1"),
        (["--lr_sweep=[1e-4,1e-4]"], "lr_sweep is"),
        (["--holdout=1"], "holdout is 1.0"),
        (["--tasks=cola,cola"], "should be different names"),
        (["--own.test=a.csv"], "own.train is missing"),
        (["--own.train=a.csv", "--tasks=cola"], "own.train and tasks are both given"),
        (["--own.text_columns=[a,b,c]"], "own.text_columns is"),
        (["--epoch=3"], "epoch"),
    ],
)
def test_wrong_options_are_named(argv, message, capsys):
    with pytest.raises(SystemExit) as raised:
        parse(*argv)
    assert raised.value.code == 2 and message in capsys.readouterr().err


def write_csv(path: Path, seed: int, count: int, labels: bool = True) -> None:
    rows, classes = texts(count, seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "stars"] if labels else ["review"])
        for row, label in zip(rows, classes, strict=True):
            writer.writerow([row, ["bad", "good"][label]] if labels else [row])


@pytest.mark.slow
def test_own_data_from_csv_to_a_pipeline(tmp_path, small_model):
    write_csv(tmp_path / "reviews.csv", seed=1, count=120)
    write_csv(tmp_path / "new.csv", seed=2, count=10, labels=False)
    command = [sys.executable, "finetune_glue.py", f"--model={small_model}", f"--own.train={tmp_path / 'reviews.csv'}"]
    command += [f"--own.test={tmp_path / 'new.csv'}", "--own.text_columns=[review]", "--own.label_column=stars"]
    command += ["--seeds=1", "--epochs=8", "--lr=3e-3", "--max_length=16", "--save_models=true"]
    command += [f"--output_dir={tmp_path / 'out'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "glue.json").read_text())
    assert results["scores"]["reviews"]["median"] > 0.9
    assert results["tasks"]["reviews"][0]["rows"] == {"train": 108, "dev reviews": 12, "test reviews": 10}
    assert "arXiv" not in (tmp_path / "out" / "glue.md").read_text()  # its scores have no counterpart in the paper

    rows, classes = texts(10, 2)
    lines = (tmp_path / "out" / "predictions" / "reviews.tsv").read_text().splitlines()[1:]
    assert lines == [f"{row}\t{['bad', 'good'][label]}" for row, label in enumerate(classes)]
    classify = pipeline("text-classification", str(tmp_path / "out" / "runs" / "reviews" / "seed-0" / "model"))
    assert [answer["label"] for answer in classify(rows)] == [["bad", "good"][label] for label in classes]


@pytest.mark.slow
def test_errors_are_messages(tmp_path):
    command = [sys.executable, "finetune_glue.py", "--model", str(tmp_path / "nothing"), "--tasks=cola"]
    done = subprocess.run(
        [*command, f"--output_dir={tmp_path / 'out'}"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1 and done.stderr.startswith("error: model ") and "Traceback" not in done.stderr
