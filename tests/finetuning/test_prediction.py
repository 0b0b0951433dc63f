"""Predictions for new texts agree with transformers' pipeline, in every format, and errors name what is wrong."""

import csv
import json

import pytest
from pyarrow import parquet, table
from transformers import pipeline

from tests.finetuning.helpers import texts
from ultrafastbert.cli import main, parse_arguments
from ultrafastbert.finetuning import sweep
from ultrafastbert.finetuning.arguments import FinetuneArguments, OwnDataArguments
from ultrafastbert.finetuning.data.tables import load_table
from ultrafastbert.finetuning.data.tasks import fingerprint
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


def test_tests_and_seeds_extend_a_finished_sweep(small_model, tmp_path, monkeypatch, capsys):
    """With the saved models, without training again what is finished."""
    train = str(write(tmp_path / "train.csv"))

    def run(test=None, seeds=1, **options):
        own = OwnDataArguments(train=train, test=test, text_columns=["review"], label_column="stars")
        options = {"epochs": 1, "lr": 3e-3, "max_length": 16, "save_models": True} | options
        return finetune_all(
            FinetuneArguments(model=small_model, own=own, seeds=seeds, output_dir=str(tmp_path / "out"), **options)
        )

    first = run()["tasks"]["train"]
    monkeypatch.setattr(sweep, "finetune", lambda *_, **__: pytest.fail("nothing is missing"))
    for count in (3, 5):  # added, then changed
        (tmp_path / "new.csv").write_text("review\n" + "\n".join(LINES[:count]) + "\n")
        assert run(test=str(tmp_path / "new.csv"))["tasks"]["train"] == first
        predicted = (tmp_path / "out" / "predictions" / "train.tsv").read_text().splitlines()[1:]
        model = str(tmp_path / "out" / "runs" / "train" / "seed-0" / "model")
        expected = [each["label"] for each in pipeline("text-classification", model)(LINES[:count])]
        assert [line.split("\t")[1] for line in predicted] == expected
        assert "predicted train with the saved model" in capsys.readouterr().out
    run(test=str(tmp_path / "new.csv"))
    assert "saved model" not in capsys.readouterr().out
    monkeypatch.undo()
    assert len(run(test=str(tmp_path / "new.csv"), seeds=2)["tasks"]["train"]) == 2
    with (tmp_path / "train.csv").open("a") as file:
        file.write("w0 w5,bad\n")
    with pytest.raises(UserError, match="data_fingerprint was"):
        run()


def test_without_saved_models_added_tests_are_refused(small_model, tmp_path):
    """After the table has been written."""
    train, new = str(write(tmp_path / "train.csv")), str(write(tmp_path / "new.csv"))
    options = {"seeds": 1, "epochs": 1, "max_length": 16, "output_dir": str(tmp_path / "out"), "model": small_model}
    columns = {"train": train, "text_columns": ["review"], "label_column": "stars"}
    finetune_all(FinetuneArguments(own=OwnDataArguments(**columns), **options))
    with pytest.raises(UserError, match="own.test was added .* no saved model .* --resume never"):
        finetune_all(FinetuneArguments(own=OwnDataArguments(test=new, **columns), **options))
    assert (tmp_path / "out" / "glue.json").exists()


def test_a_finished_sweep_of_an_earlier_version_with_tests_is_accepted(small_model, tmp_path, monkeypatch):
    """Its fingerprints were of the tests too, and there was no list of tests."""
    train, new = str(write(tmp_path / "train.csv")), str(write(tmp_path / "new.csv"))
    own = OwnDataArguments(train=train, test=new, text_columns=["review"], label_column="stars")
    options = {"seeds": 1, "epochs": 1, "max_length": 16, "output_dir": str(tmp_path / "out"), "model": small_model}
    finetune_all(FinetuneArguments(own=own, **options))
    directory = tmp_path / "out" / "runs" / "train" / "seed-0"
    (directory / "tests.json").unlink()
    data = load_table("train", train, own)
    result = json.loads((directory / "result.json").read_text())
    result = {name: value for name, value in result.items() if name != "checksum"}
    result["data_fingerprint"] = fingerprint(data.splits.values())
    (directory / "result.json").write_text(json.dumps(result))
    monkeypatch.setattr(sweep, "finetune", lambda *_, **__: pytest.fail("nothing is missing"))
    finetune_all(FinetuneArguments(own=own, **options))
