"""Prediction files in the format of the GLUE benchmark's server (gluebenchmark.com/faq).

Notable: equal predictions give equal files to the last byte, the zip file included, which states no times.
"""

import io
import math
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ultrafastbert.finetuning.data.glue import MAX_SCORE, TASKS
from ultrafastbert.finetuning.data.tasks import Split, Task
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import write_atomically

ARCHIVE = "submission.zip"
SUBMISSION = tuple(title for glue in TASKS.values() for title in glue.test_titles)
"""The titles of all test sets of GLUE; the server refuses a submission that lacks one."""

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can state
_STSB = (TASKS["stsb"].task, TASKS["stsb"].folder)


@dataclass(frozen=True)
class Prediction:
    """A model's predictions for a test set: of each example a class, an index into the task's labels, or a number."""

    task: Task
    split: Split
    values: Sequence[int] | Sequence[float]


def write_predictions(directory: Path, predictions: Iterable[Prediction]) -> list[str]:
    """Writes `TITLE.tsv` for each test set and, if any are GLUE's, all of them into `submission.zip`.

    A file has the header `index`, `prediction` and a line for each example: its id, and its label as a word or its
    number. STS-B's numbers are clipped to 0..5 and have three decimals; other numbers are written in full.

    Args:
        directory: of the files, which replace files of the same names; created if it does not exist.
        predictions: for different test sets.

    Returns:
        The titles that a submission needs in addition, in the benchmark's order; none if no test set is GLUE's.

    Raises:
        ValueError: two predictions for one title, more or fewer values than examples, or a class that the task does
            not have. Nothing is written.
        UserError: a number is not finite (nothing is written), or a file cannot be written.
    """
    files: dict[str, str] = {}
    for prediction in predictions:
        name = f"{prediction.split.title}.tsv"
        if name in files:
            raise ValueError(f"there are two predictions for {prediction.split.title}")
        files[name] = _table(prediction)
    missing = [title for title in SUBMISSION if f"{title}.tsv" not in files]
    is_submission = len(missing) < len(SUBMISSION)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomically(directory / name, text)
        if is_submission:
            write_atomically(directory / ARCHIVE, _archive(files))
    except OSError as error:
        raise UserError(f"predictions cannot be written to {directory}: {error.strerror or error}") from error
    return missing if is_submission else []


def _table(prediction: Prediction) -> str:
    split, values = prediction.split, prediction.values
    if len(values) != len(split):
        raise ValueError(f"{split.title} has {len(split)} examples, but {len(values)} predictions")
    lines = [f"{id}\t{_text(prediction, value)}\n" for id, value in zip(split.ids, values, strict=True)]
    return "index\tprediction\n" + "".join(lines)


def _text(prediction: Prediction, value: int | float) -> str:
    """A prediction as the file has it: a label or a number."""
    title, labels = prediction.split.title, prediction.task.labels
    if labels is not None:
        if value not in range(len(labels)):
            raise ValueError(f"a prediction for {title} is {value}; it should be a class from 0 to {len(labels) - 1}")
        return labels[int(value)]
    if not math.isfinite(value):
        raise UserError(f"a prediction for {title} is {value}; it should be a finite number")
    if (prediction.task, title) == _STSB:
        return f"{max(0.0, min(value, MAX_SCORE)):.3f}"
    return repr(float(value))


def _archive(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3  # Unix on every system, because the mode below is Unix's
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name], zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
