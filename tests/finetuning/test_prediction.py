"""Predictions for new texts agree with transformers' pipeline, in every format, and errors name what is wrong."""

import csv
import json

import pytest
from pyarrow import parquet, table
from transformers import pipeline

from tests.finetuning.helpers import texts
from ultrafastbert.cli import main, parse_arguments
from ultrafastbert.finetuning.arguments import FinetuneArguments, OwnDataArguments
from ultrafastbert.finetuning.prediction import PredictArguments, predict
from ultrafastbert.finetuning.sweep import finetune_all
from ultrafastbert.utils.errors import UserError

LINES, LABELS = texts(30, seed=5)
WORDS = ["good" if label else "bad" for label in LABELS]


def write(path):
    if path.suffix == ".parquet":
        parquet.write_table(table({"review": LINES, "stars": WORDS}), path)
    elif path.suffix == ".jsonl":
        rows = zip(LINES, WORDS, strict=True)
        path.write_text("".join(json.dumps({"review": text, "stars": word}) + "\n" for text, word in rows))
    else:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([("review", "stars"), *zip(LINES, WORDS, strict=True)])
    return path


def read(path):
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.fixture(scope="module")
def model(small_model, tmp_path_factory):
    """A classifier fine-tuned with the command."""
    directory = tmp_path_factory.mktemp("own")
    own = OwnDataArguments(train=str(write(directory / "train.csv")), text_columns=["review"], label_column="stars")
    options = {"seeds": 1, "epochs": 2, "lr": 3e-3, "max_length": 16, "save_models": True}
    finetune_all(FinetuneArguments(model=small_model, own=own, output_dir=str(directory / "out"), **options))
    return str(directory / "out" / "runs" / "train" / "seed-0" / "model")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_predictions_agree_with_the_pipeline(model, tmp_path, suffix):
    file, output = write(tmp_path / f"new{suffix}"), tmp_path / "results" / f"predicted{suffix}"
    words = [f"--model={model}", f"--file={file}", "--text_columns=review", f"--output={output}", "--max_length=16"]
    main("predict", words)
    rows, expected = read(output), pipeline("text-classification", model, truncation=True, max_length=16)(LINES)
    assert [int(row["index"]) for row in rows] == list(range(30))
    for row, right in zip(rows, expected, strict=True):
        assert row["prediction"] == right["label"]
        assert float(row["probability"]) == pytest.approx(right["score"], abs=1e-4)


def test_evaluation(model, tmp_path, capsys):
    file = write(tmp_path / "new.csv")
    options = {"text_columns": "review", "max_length": 16, "output": str(tmp_path / "p.csv")}
    values = predict(PredictArguments(model=model, file=str(file), label_column="stars", **options))
    predicted = [row["prediction"] for row in read(tmp_path / "p.csv")]
    assert values["accuracy"] == pytest.approx(sum(map(str.__eq__, predicted, WORDS)) / 30)
    assert f"accuracy {values['accuracy']:.4f}" in capsys.readouterr().out
    assert predict(PredictArguments(model=model, file=str(file), **options)) == {}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"text_columns": "text"}, "has no column 'text'"),
        ({"label_column": "review"}, "should be different columns"),
        ({"max_length": 500}, "max_length is 500; it should be at most"),
        ({"file": "none.csv"}, "none.csv cannot be read"),
        ({"file": "none.parquet"}, "none.parquet cannot be read"),
        ({"model": "no/such/place"}, "no such directory"),
        ({"output": "/proc/nowhere/p.csv"}, "cannot be written"),
    ],
)
def test_what_is_refused(model, tmp_path, changes, message):
    options = {"model": model, "file": str(write(tmp_path / "new.csv")), "text_columns": "review", "max_length": 16}
    with pytest.raises((UserError, ValueError), match=message):
        predict(PredictArguments(**({"output": str(tmp_path / "p.tsv")} | options | changes)))


def test_an_unknown_label_and_a_model_without_a_head_are_refused(model, small_model, tmp_path):
    file = tmp_path / "new.csv"
    file.write_text("text,label\nw1,good\nw2,middling\n")
    options = {"file": str(file), "label_column": "label", "max_length": 16, "output": str(tmp_path / "p.tsv")}
    with pytest.raises(UserError, match=r"new.csv, line 3: the label 'middling' is not .*'bad', 'good'"):
        predict(PredictArguments(model=model, **options))
    with pytest.raises(UserError, match="has no trained head"):
        predict(PredictArguments(model=small_model, **options))
    assert not (tmp_path / "p.tsv").exists()


def test_options(tmp_path):
    arguments = parse_arguments(PredictArguments, ["--model=m", "--file=f.csv", "--text_columns=[a,b]"])
    assert arguments.text_columns == ["a", "b"]
    with pytest.raises(SystemExit):
        parse_arguments(PredictArguments, ["--model=m", "--file=f.csv", "--output=p.xlsx"])
