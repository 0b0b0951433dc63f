"""GLUE (arXiv 1804.07461): its nine tasks, from the benchmark's own TSV files or from `nyu-mll/glue` on the Hub.

Notable:
- The words for a task's labels are those of the TSV files, which the benchmark's server expects in predictions. The
  Hub has other names for some (`acceptable` for `1`). Their order, and so the index of a class, is the Hub's.
- Test splits never have labels, although the Hub publishes those of MRPC: the benchmark's server scores them.
- Examples of a test split keep the order and the ids of their file. The server identifies them by the ids, which must
  be different numbers, in any order.
- Empty texts are kept: in a test file they need a prediction like any other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ultrafastbert.finetuning.data.tasks import Split, Task, TaskData, numbered
from ultrafastbert.finetuning.data.tsv import read_tsv
from ultrafastbert.utils.errors import UserError

if TYPE_CHECKING:
    import datasets

    Hub = tuple[str, datasets.DatasetDict]  # the name of a configuration in messages, and its splits

HUB_NAME = "nyu-mll/glue"
AX = "AX"
AX_FILES = ("diagnostic/diagnostic.tsv", "AX/AX.tsv", "AX.tsv")
"""Where downloads of the benchmark have the diagnostic set."""

MAX_SCORE = 5.0
"""STS-B's scores are from 0 to this."""

LINES_NAMED = 5
"""How many skipped lines a note names."""


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """A task of the benchmark, and where its examples are.

    Attributes:
        folder: of its TSV files; also the title of its splits, unless `parts` has others.
        texts: columns of the texts in TSV files.
        label: column of the label in TSV files.
        id: column of the ids in test files.
        header: the columns of training and development files, if they have no header.
        has_broken_rows: training and development files have rows that a line break inside a text split in two.
        hub_texts: columns of the texts on the Hub; None if they are those of the TSV files.
        hub_labels: names of the classes on the Hub; None if they are those of the TSV files.
        parts: titles of the development sets, each with a suffix for its file and its test set (`_matched` for
            `dev_matched.tsv` and `test_matched.tsv`); empty if there is one of each.
        has_diagnostic_set: the model also predicts the examples of AX.
    """

    task: Task
    folder: str
    texts: tuple[str, ...]
    label: str = "label"
    id: str = "index"
    header: tuple[str, ...] | None = None
    has_broken_rows: bool = False
    hub_texts: tuple[str, ...] | None = None
    hub_labels: tuple[str, ...] | None = None
    parts: tuple[tuple[str, str], ...] = ()
    has_diagnostic_set: bool = False

    @property
    def splits(self) -> tuple[tuple[str, str], ...]:
        """Title and suffix of each development set, and of the corresponding test set."""
        return self.parts or ((self.folder, ""),)

    @property
    def test_titles(self) -> list[str]:
        """The titles of the test sets."""
        return [title for title, _ in self.splits] + [AX] * self.has_diagnostic_set


_BINARY = ("0", "1")
_TWO_WAY = ("entailment", "not_entailment")
_THREE_WAY = ("entailment", "neutral", "contradiction")
_PAIR = ("sentence1", "sentence2")

# The primary metrics are those of the BERT paper (arXiv 1810.04805, table 1).
TASKS: dict[str, GlueTask] = {
    glue.task.name: glue
    for glue in (
        GlueTask(
            task=Task("cola", _BINARY, "matthews", "matthews_correlation"),
            folder="CoLA",
            texts=("sentence",),
            header=("source", "label", "mark", "sentence"),
            hub_labels=("unacceptable", "acceptable"),
        ),
        GlueTask(
            task=Task("sst2", _BINARY, "accuracy_f1", "accuracy"),
            folder="SST-2",
            texts=("sentence",),
            hub_labels=("negative", "positive"),
        ),
        GlueTask(
            task=Task("mrpc", _BINARY, "accuracy_f1", "f1"),
            folder="MRPC",
            texts=("#1 String", "#2 String"),
            label="Quality",
            hub_texts=_PAIR,
            hub_labels=("not_equivalent", "equivalent"),
        ),
        GlueTask(task=Task("stsb", None, "pearson_spearman", "spearman"), folder="STS-B", texts=_PAIR, label="score"),
        GlueTask(
            task=Task("qqp", _BINARY, "accuracy_f1", "f1"),
            folder="QQP",
            texts=("question1", "question2"),
            label="is_duplicate",
            id="id",
            has_broken_rows=True,
            hub_labels=("not_duplicate", "duplicate"),
        ),
        GlueTask(
            task=Task("mnli", _THREE_WAY, "accuracy_f1", "accuracy"),
            folder="MNLI",
            texts=_PAIR,
            label="gold_label",
            hub_texts=("premise", "hypothesis"),
            parts=(("MNLI-m", "_matched"), ("MNLI-mm", "_mismatched")),
            has_diagnostic_set=True,
        ),
        GlueTask(
            task=Task("qnli", _TWO_WAY, "accuracy_f1", "accuracy"), folder="QNLI", texts=("question", "sentence")
        ),
        GlueTask(task=Task("rte", _TWO_WAY, "accuracy_f1", "accuracy"), folder="RTE", texts=_PAIR),
        GlueTask(
            task=Task("wnli", _BINARY, "accuracy_f1", "accuracy"),
            folder="WNLI",
            texts=_PAIR,
            hub_labels=("not_entailment", "entailment"),
        ),
    )
}
"""The tasks by name, in the benchmark's order."""


def load_glue(name: str, data_dir: str | Path | None) -> TaskData:
    """The examples of a GLUE task; MNLI has two development sets, and the diagnostic set AX among its test sets.

    If the file of AX is missing, MNLI does not have that test set, and the notes of its last test set say so.

    Args:
        name: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte or wnli.
        data_dir: directory of the benchmark's own files, in folders CoLA, SST-2, ...; None: the Hub.

    Raises:
        UserError: there is no such task, a file is missing or has wrong contents (names file and line), or the Hub
            cannot be read or has other columns or classes.
    """
    if name not in TASKS:
        raise UserError(f"{name!r} is not a GLUE task; it should be one of {', '.join(TASKS)}")
    return _load_from_hub(TASKS[name]) if data_dir is None else _load_files(TASKS[name], Path(data_dir).expanduser())


def _load_files(glue: GlueTask, data_dir: Path) -> TaskData:
    if not data_dir.is_dir():
        raise UserError(f"data_dir is {data_dir}; it should be a directory with the folder {glue.folder}")
    folder = data_dir / glue.folder
    train = _read_labelled(glue, glue.folder, folder / "train.tsv")
    evaluations = [_read_labelled(glue, title, folder / f"dev{suffix}.tsv") for title, suffix in glue.splits]
    tests = [_read_test(glue, title, folder / f"test{suffix}.tsv") for title, suffix in glue.splits]
    if glue.has_diagnostic_set:
        path = next((data_dir / name for name in AX_FILES if (data_dir / name).is_file()), None)
        if path is not None:
            tests.append(_read_test(glue, AX, path))
        else:
            tests[-1].notes.append(f"no diagnostic set (AX): {data_dir} has none of {', '.join(AX_FILES)}")
    return TaskData(glue.task, train, evaluations, tests)


def _read_labelled(glue: GlueTask, title: str, path: Path) -> Split:
    _check_file(path)
    texts, labels = [], []
    broken = [] if glue.has_broken_rows else None
    for number, (*row, word) in read_tsv(path, (*glue.texts, glue.label), glue.header, broken):
        texts.append(tuple(row))
        labels.append(_label(glue, word, f"{path}, line {number}, column {glue.label!r}"))
    return Split(title, texts, labels, numbered(len(texts)), _notes_on(broken or [], path))


def _read_test(glue: GlueTask, title: str, path: Path) -> Split:
    _check_file(path)
    lines, texts, ids = [], [], []
    for number, (*row, id) in read_tsv(path, (*glue.texts, glue.id)):
        lines.append(number)
        texts.append(tuple(row))
        ids.append(id)
    _check_ids(ids, f"{path}, line", lines)
    return Split(title, texts, None, ids)


def _check_file(path: Path) -> None:
    if not path.is_file():
        folder = next(parent for parent in path.parents if parent.is_dir())
        names = ", ".join(sorted(child.name for child in folder.iterdir())) or "nothing"
        raise UserError(f"{path} does not exist; {folder} contains {names}")


def _label(glue: GlueTask, word: str, place: str) -> int | float:
    labels = glue.task.labels
    if labels is None:
        return _score(word, place)
    if word not in labels:
        raise UserError(f"{place} is {word!r}; it should be one of {', '.join(labels)}")
    return labels.index(word)


def _score(value: str, place: str) -> float:
    try:
        score = float(value)
    except ValueError:
        score = float("nan")
    if not 0 <= score <= MAX_SCORE:  # false for NaN too
        raise UserError(f"{place} is {value!r}; it should be a number from 0 to {MAX_SCORE:g}")
    return score


def _notes_on(broken: list[int], path: Path) -> list[str]:
    if not broken:
        return []
    lines = ", ".join(map(str, broken[:LINES_NAMED])) + ", ..." * (len(broken) > LINES_NAMED)
    return [f"skipped {len(broken)} lines of {path} with the wrong number of columns: {lines}"]


def _check_ids(ids: Sequence[str], place: str, numbers: Iterable[int]) -> None:
    first: dict[int, int] = {}
    for id, number in zip(ids, numbers, strict=True):
        if not (id.isascii() and id.isdigit()):
            raise UserError(f"{place} {number}: the id is {id!r}; it should be a whole number")
        before = first.setdefault(int(id), number)
        if before != number:
            raise UserError(f"{place} {number}: the id is {id}, as in {before}; all ids should be different")


def _load_from_hub(glue: GlueTask) -> TaskData:
    hub = _download(glue.task.name)
    train = _hub_split(glue, glue.folder, hub, "train")
    evaluations = [_hub_split(glue, title, hub, f"validation{suffix}") for title, suffix in glue.splits]
    tests = [_hub_split(glue, title, hub, f"test{suffix}", is_test=True) for title, suffix in glue.splits]
    if glue.has_diagnostic_set:
        tests.append(_hub_split(glue, AX, _download("ax"), "test", is_test=True))
    return TaskData(glue.task, train, evaluations, tests)


def _download(name: str) -> "Hub":
    place = f"{HUB_NAME}, configuration {name}"
    instead = "without the Hub, --data_dir DIR reads the benchmark's own TSV files"
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"reading {HUB_NAME} from the Hub needs `pip install datasets`; {instead}") from error
    try:
        return place, datasets.load_dataset(HUB_NAME, name)
    except Exception as error:  # whatever the network, the Hub or its files raise
        reason = error if str(error) else type(error).__name__
        raise UserError(f"{place}, cannot be read from the Hugging Face Hub: {reason} ({instead})") from error


def _hub_split(glue: GlueTask, title: str, hub: "Hub", name: str, is_test: bool = False) -> Split:
    place, splits = hub
    if name not in splits:
        raise UserError(f"{place} has no split {name!r}; it has {', '.join(map(str, splits))}")
    rows, place, columns = splits[name], f"{place}, split {name}", glue.hub_texts or glue.texts
    _check_features(glue, (*columns, "label", "idx"), rows, place)
    content = rows[:]
    texts = list(zip(*(_stripped(content[column], column, place) for column in columns), strict=True))
    if is_test:
        ids = [str(id) for id in content["idx"]]
        _check_ids(ids, f"{place}, row", range(len(ids)))
        return Split(title, texts, None, ids)
    rows = enumerate(content["label"])
    labels = [_hub_label(glue, value, f"{place}, row {row}, column 'label'") for row, value in rows]
    return Split(title, texts, labels, numbered(len(texts)))


def _check_features(glue: GlueTask, columns: Iterable[str], rows: "datasets.Dataset", place: str) -> None:
    missing = [column for column in columns if column not in rows.features]
    if missing:
        raise UserError(f"{place} has no column {missing[0]!r}; it has {', '.join(rows.features)}")
    if not len(rows):
        raise UserError(f"{place} has no rows")
    expected = glue.hub_labels or glue.task.labels
    names = getattr(rows.features["label"], "names", None)
    if (names and tuple(names)) != expected:
        raise UserError(f"{place} has the classes {names}; they should be {expected and list(expected)}")


def _stripped(texts: Sequence[str | None], column: str, place: str) -> list[str]:
    if None in texts:
        raise UserError(f"{place}, row {texts.index(None)}: column {column!r} has no text")
    return [text.strip() for text in texts if text is not None]


def _hub_label(glue: GlueTask, value: int | float | None, place: str) -> int | float:
    if glue.task.is_regression:
        # The float32 on the Hub, to seven digits, is the number that was written: 3.8, not 3.7999999523162842.
        return _score("" if value is None else f"{value:.7g}", place)
    if value is None or value not in range(glue.task.outputs):  # -1 stands for a label that is not public
        raise UserError(f"{place} is {value}; it should be from 0 to {glue.task.outputs - 1}")
    return value
