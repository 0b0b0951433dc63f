import csv
import os
import zipfile

import numpy as np
import pytest

from ultrafastbert.finetuning.data.glue import TASKS
from ultrafastbert.finetuning.data.predictions import Prediction, write_predictions
from ultrafastbert.finetuning.data.tasks import Split, Task
from ultrafastbert.utils.errors import UserError

ALL = ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "AX", "QNLI", "RTE", "WNLI"]
WORDS = {
    "CoLA": ["0", "1"],
    "SST-2": ["0", "1"],
    "MRPC": ["0", "1"],
    "QQP": ["0", "1"],
    "MNLI-m": ["entailment", "neutral", "contradiction"],
    "MNLI-mm": ["entailment", "neutral", "contradiction"],
    "AX": ["entailment", "neutral", "contradiction"],
    "QNLI": ["entailment", "not_entailment"],
    "RTE": ["entailment", "not_entailment"],
    "WNLI": ["0", "1"],
}
OWN = Task("colours", ("blue", "dark red"), "accuracy_f1", "accuracy")
OWN_REGRESSION = Task("lengths", None, "pearson_spearman", "spearman")


def split(title: str, ids: list[str]) -> Split:
    return Split(title, [("a",)] * len(ids), None, ids)


def predict(title: str, values, ids=None) -> Prediction:
    (task,) = (glue.task for glue in TASKS.values() if title in glue.test_titles)
    return Prediction(task, split(title, ids or [str(number) for number in range(len(values))]), values)


def everything() -> list[Prediction]:
    return [predict(title, [2.5, 4.0] if title == "STS-B" else [1, 0]) for title in ALL]


def read(path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_a_complete_submission(tmp_path):
    directory = tmp_path / "new" / "predictions"
    assert write_predictions(directory, everything()) == []
    names = sorted(f"{title}.tsv" for title in ALL)
    assert sorted(path.name for path in directory.iterdir()) == [*names, "submission.zip"]
    with zipfile.ZipFile(directory / "submission.zip") as archive:
        assert archive.namelist() == names
        assert archive.testzip() is None
        assert all(archive.read(name) == (directory / name).read_bytes() for name in names)
        assert {entry.external_attr >> 16 for entry in archive.infolist()} == {0o644}


@pytest.mark.parametrize("title", WORDS)
def test_files_have_the_benchmarks_labels_and_the_ids_of_the_examples(tmp_path, title):
    values = np.arange(len(WORDS[title]))[::-1]
    ids = [str(17 - 3 * row) for row in range(len(values))]
    write_predictions(tmp_path, [predict(title, values, ids)])
    lines = [list(line) for line in zip(ids, WORDS[title][::-1], strict=True)]
    assert read(tmp_path / f"{title}.tsv") == [["index", "prediction"], *lines]


def test_scores_of_stsb_are_clipped_and_have_three_decimals(tmp_path):
    scores = np.array([-0.2, -0.0, 3.14159, 4.9996, 5.7, 1e9], dtype=np.float32)
    write_predictions(tmp_path, [predict("STS-B", scores)])
    written = [score for _, score in read(tmp_path / "STS-B.tsv")[1:]]
    assert written == ["0.000", "0.000", "3.142", "5.000", "5.000", "5.000"]


def test_missing_test_sets_are_returned_in_the_benchmarks_order(tmp_path):
    given = [prediction for prediction in everything() if prediction.split.title not in ("QQP", "AX", "SST-2")]
    assert write_predictions(tmp_path, reversed(given)) == ["SST-2", "QQP", "AX"]


def test_own_tasks_have_labels_and_unrounded_numbers_but_no_submission(tmp_path):
    values = [-7.25, 1234567.125, 1e-9]
    predictions = [
        Prediction(OWN, split("colours", ["0", "1"]), [1, 0]),
        Prediction(OWN_REGRESSION, split("lengths", ["0", "1", "2"]), values),
    ]
    assert write_predictions(tmp_path, predictions) == []
    assert read(tmp_path / "colours.tsv")[1:] == [["0", "dark red"], ["1", "blue"]]
    assert [float(number) for _, number in read(tmp_path / "lengths.tsv")[1:]] == values
    assert not (tmp_path / "submission.zip").exists()


def test_equal_predictions_give_equal_bytes(tmp_path, monkeypatch):
    write_predictions(tmp_path / "a", everything())
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_predictions(tmp_path / "b", reversed(everything()))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("prediction", "error", "message"),
    [
        (predict("RTE", [0, 1, 1], ["0", "1"]), ValueError, "RTE has 2 examples, but 3 predictions"),
        (predict("RTE", [], ["0", "1"]), ValueError, "RTE has 2 examples, but 0 predictions"),
        (predict("RTE", [0, 2]), ValueError, "RTE is 2; it should be a class from 0 to 1"),
        (predict("RTE", [-1, 0]), ValueError, "RTE is -1; it should be a class from 0 to 1"),
        (predict("CoLA", [0]), ValueError, "two predictions for CoLA"),
        (predict("STS-B", [1.0, float("nan")]), UserError, "STS-B is nan; it should be a finite number"),
    ],
)
def test_an_error_changes_no_files(tmp_path, prediction, error, message):
    write_predictions(tmp_path, [predict("CoLA", [1, 1])])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(error, match=message):
        write_predictions(tmp_path, [predict("CoLA", [0, 0]), prediction])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_failing_write_keeps_the_old_archive(tmp_path, monkeypatch):
    write_predictions(tmp_path, [predict("CoLA", [1, 1])])
    before = (tmp_path / "submission.zip").read_bytes()

    def full(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"predictions cannot be written to .*: No space left on device"):
        write_predictions(tmp_path, [predict("CoLA", [0, 0])])
    assert (tmp_path / "submission.zip").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CoLA.tsv", "submission.zip"]


def test_a_failing_archive_keeps_the_old_one(tmp_path, monkeypatch):
    write_predictions(tmp_path, [predict("CoLA", [1, 1])])
    before = (tmp_path / "submission.zip").read_bytes()

    def full(self, *arguments):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_predictions(tmp_path, [predict("CoLA", [0, 0])])
    assert (tmp_path / "submission.zip").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CoLA.tsv", "submission.zip"]


def test_a_file_instead_of_the_directory_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="predictions cannot be written to .*file: File exists"):
        write_predictions(tmp_path / "file", [predict("CoLA", [0])])
