"""What fine-tuning needs to know of a task, wherever its rows come from: GLUE or somebody's own files."""

import hashlib
import json
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Task:
    """A task of classifying texts, or pairs of texts, or of giving them a number.

    Attributes:
        name: what it is called in options and file names, such as `stsb`.
        labels: the label words; a class is an index into them. None for regression.
        metric: the metric module of `ultrafastbert.finetuning.metrics` that evaluates it.
        primary: which of that metric's values stands for the task in tables and averages.
    """

    name: str
    labels: tuple[str, ...] | None
    metric: str
    primary: str

    @property
    def is_regression(self) -> bool:
        return self.labels is None


@dataclass
class Split:
    """Rows of a task.

    Attributes:
        title: what the split is called in tables and prediction files, such as `MNLI-mm`.
        texts: one or two texts a row.
        labels: an index into the task's labels, or a number, a row; None where labels are not public.
        ids: what names each row in a prediction file.
        notes: what a person should know of the reading, such as how many rows of which file were left out and why.
    """

    title: str
    texts: list[tuple[str, ...]]
    labels: list[int] | list[float] | None
    ids: list[str]
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)


@dataclass
class TaskData:
    """The rows of a task: one split to train on, and any number to evaluate on (with labels) and to predict."""

    task: Task
    train: Split
    evaluations: list[Split]
    tests: list[Split]

    @property
    def fingerprint(self) -> str:
        """Equal for equal rows in equal order, wherever they were read from; SHA-256, 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for split in (self.train, *self.evaluations, *self.tests):
            digest.update(json.dumps([split.title, split.texts, split.labels, split.ids]).encode())
        return digest.hexdigest()[:16]
