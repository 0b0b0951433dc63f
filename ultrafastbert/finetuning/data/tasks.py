"""Tasks and their examples, in one form for GLUE and for your own files."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Task:
    """A task of classifying texts or pairs of texts, or of predicting a number for them.

    Attributes:
        name: used in options and file names, such as `stsb`.
        labels: words for the classes; a class is an index into them. None for regression.
        metric: the module of `ultrafastbert.finetuning.metrics` that evaluates the task.
        primary: the value of that metric that represents the task in tables and averages.
    """

    name: str
    labels: tuple[str, ...] | None
    metric: str
    primary: str

    @property
    def is_regression(self) -> bool:
        """Whether the task is to predict a number."""
        return self.labels is None

    @property
    def outputs(self) -> int:
        """Outputs of a model's head: one for each class, or one for a number."""
        return 1 if self.labels is None else len(self.labels)


@dataclass
class Split:
    """Examples of a task.

    Attributes:
        title: the name of the split in tables and prediction files, such as `MNLI-mm`.
        texts: of each example, one or two texts.
        labels: of each example, an index into the task's labels, or a number; None where labels are not public.
        ids: of each example, its name in a prediction file.
        notes: sentences for the report, such as how many lines of which file were skipped and why.
    """

    title: str
    texts: list[tuple[str, ...]]
    labels: Sequence[int | float] | None
    ids: list[str]
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)


@dataclass
class TaskData:
    """The examples of a task: a split to train on, splits with labels to evaluate on, and splits to predict.

    `tests_may_change` is True for your own tests, which trained models can predict later; a benchmark's are fixed.
    """

    task: Task
    train: Split
    evaluations: list[Split]
    tests: list[Split]
    tests_may_change: bool = False

    @property
    def splits(self) -> dict[str, Split]:
        """All splits, by their names in results: `train`, `dev MNLI-m`, `test MNLI-m`."""
        splits = {"train": self.train} | {f"dev {split.title}": split for split in self.evaluations}
        return splits | {f"test {split.title}": split for split in self.tests}

    @property
    def notes(self) -> list[str]:
        """The notes of all splits."""
        return [note for split in self.splits.values() for note in split.notes]

    @property
    def fingerprint(self) -> str:
        """A hash of the examples and their order, wherever they were read from, without tests that may change."""
        return fingerprint([self.train, *self.evaluations] if self.tests_may_change else self.splits.values())


def fingerprint(splits: Iterable[Split]) -> str:
    """A hash of the examples of splits and their order: SHA-256, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(json.dumps([split.title, split.texts, split.labels, split.ids]).encode())
    return digest.hexdigest()[:16]


def numbered(count: int) -> list[str]:
    """Ids of examples that have none of their own: `0`, `1`, ..."""
    return [str(number) for number in range(count)]
