"""A task of your own, from CSV, TSV, JSONL or Parquet files with named columns.

Notable:
- Files are read literally: labels are words (`1` and `1.0` are two classes), only an empty field is a missing value,
  and neither delimiter nor encoding is guessed. Only blanks around texts and labels are removed.
- A broken row is an error that names file and line; a row of several lines has the number of its first line.
"""

import csv
import io
import json
import math
import random
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ultrafastbert.finetuning.arguments import OwnDataArguments
from ultrafastbert.finetuning.data.tasks import Split, Task, TaskData, numbered
from ultrafastbert.finetuning.data.tsv import read_lines, wrong_count
from ultrafastbert.utils.errors import UserError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_SUFFIXES = (".jsonl", ".json")
LONGEST_FIELD = 2**31 - 1


@dataclass
class Table:
    """The rows of a file: the line where each starts, its texts, and its label as a word.

    A test file may have no labels; then `words` is empty.
    """

    path: Path
    lines: list[int]
    texts: list[tuple[str, ...]]
    words: list[str]

    def place(self, row: int) -> str:
        """A row's file and line, for messages."""
        return f"{self.path}, line {self.lines[row]}"


def load_table(name: str, train: str | Path, own: OwnDataArguments, seed: int = 0) -> TaskData:
    """The examples of a task of your own; its metrics are accuracy and F1, or correlations in regression.

    The classes are the labels of the training file, sorted; as numbers if all of them are numbers. The title of all
    splits is the name of the task; their ids are numbers from 0.

    Args:
        name: of the task; letters, digits, `_`, `.` and `-`, because it becomes part of file names.
        train: a .csv, .tsv, .jsonl or .json file (JSON: an object per line) in UTF-8; .gz may follow. CSV and TSV
            begin with the names of their columns, and quote with `"`.
        own: its columns, and its other files, of these formats too.
        seed: decides which training examples are held out if there is no validation file.

    Raises:
        UserError: a file cannot be read or lacks a column; a text or label is empty or has the wrong type; a label is
            not in the training file, which has at least two classes; or there are too few examples to hold some out
            and keep one of each class. Names file and line.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"the name of the task is {name!r}; it should consist of letters, digits, '_', '-' and '.'")
    table = _read_table(Path(train), own)
    task = _task(name, table, own)
    examples = _split(task, table)
    if own.validation is None:
        examples, evaluation = _hold_out(examples, task, table.path, own.validation_fraction, seed)
    else:
        evaluation = _split(task, _read_table(Path(own.validation), own))
    tests = [] if own.test is None else [_split(task, _read_table(Path(own.test), own, is_test=True))]
    return TaskData(task, examples, [evaluation], tests, tests_may_change=True)


def load_examples(task: Task, path: str | Path, own: OwnDataArguments, labelled: bool) -> Split:
    """The examples of a file for a task that exists; with their labels if `labelled`.

    Raises:
        UserError: as `load_table`.
    """
    table = _read_table(Path(path), own, is_test=not labelled)
    if not labelled:
        table.words = []
    return _split(task, table)


def _task(name: str, table: Table, own: OwnDataArguments) -> Task:
    if own.regression:
        return Task(name, None, "pearson_spearman", "spearman")
    labels = sorted(set(table.words))
    if len(labels) == 1:
        raise UserError(
            f"{table.path} has only {labels[0]!r} in column {own.label_column!r}; it should have two or more classes"
        )
    if all(_is_finite(label) for label in labels):
        labels.sort(key=float)
    return Task(name, tuple(labels), "accuracy_f1", "accuracy")


def _split(task: Task, table: Table) -> Split:
    labels = [_label(task, word, table.place(row)) for row, word in enumerate(table.words)]
    return Split(task.name, table.texts, labels or None, numbered(len(table.texts)))


def _label(task: Task, word: str, place: str) -> int | float:
    if task.labels is None:
        if not _is_finite(word):
            raise UserError(f"{place}: the label is {word!r}; it should be a finite number")
        return float(word)
    if word not in task.labels:
        raise UserError(
            f"{place}: the label {word!r} is not in the training file, whose labels are {_some(task.labels)}"
        )
    return task.labels.index(word)


def _some(labels: Sequence[str]) -> str:
    return ", ".join(map(repr, labels[:5])) + ", ..." * (len(labels) > 5)


def _is_finite(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _hold_out(split: Split, task: Task, path: Path, fraction: float, seed: int) -> tuple[Split, Split]:
    """Training examples and validation examples, each in the order of the file."""
    size, labels = len(split), split.labels or []
    count = max(1, round(fraction * size))
    held = _draw(labels, count, seed, keep_each=not task.is_regression)
    if len(held) < count or count == size:
        kept = "one" if task.is_regression else "one of each class"
        raise UserError(f"{path} has too few examples ({size}) to hold out {count} and keep {kept} to train on")
    note = f"{count} of the {size} examples of {path}, held out at random (seed {seed})"
    return _selection(split, [i for i in range(size) if i not in held], []), _selection(split, sorted(held), [note])


def _draw(labels: Sequence[int | float], count: int, seed: int, keep_each: bool) -> set[int]:
    """At most `count` random indices; with `keep_each`, one example of each label is not drawn."""
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)
    remaining, drawn = Counter(labels), set()
    for index in order:
        if len(drawn) < count and (remaining[labels[index]] > 1 or not keep_each):
            remaining[labels[index]] -= 1
            drawn.add(index)
    return drawn


def _selection(split: Split, indices: Sequence[int], notes: list[str]) -> Split:
    labels = split.labels or []
    texts, labels = [split.texts[index] for index in indices], [labels[index] for index in indices]
    return Split(split.title, texts, labels, numbered(len(indices)), notes)


def _read_table(path: Path, own: OwnDataArguments, is_test: bool = False) -> Table:
    """The texts and labels of a file, none of them empty; a test file may have no labels."""
    path = path.expanduser()
    records = _read_records(path, own.text_columns if is_test else [*own.text_columns, own.label_column])
    if not records:
        raise UserError(f"{path} has no rows")
    has_labels = any(own.label_column in record for _, record in records)
    table = Table(path, [], [], [])
    for line, record in records:
        place = f"{path}, line {line}"
        table.lines.append(line)
        table.texts.append(tuple(_text(record, column, place) for column in own.text_columns))
        if has_labels:
            table.words.append(_word(record, own, place))
    return table


def _text(record: dict[str, object], column: str, place: str) -> str:
    value = record[column]
    if not isinstance(value, str):
        raise UserError(f"{place}, column {column!r} is {_shown(value)}; it should be text")
    return _checked(value, column, place)


def _word(record: dict[str, object], own: OwnDataArguments, place: str) -> str:
    """The label as a word; of JSON's values, only those that can be written in one way."""
    column, value = own.label_column, record.get(own.label_column)  # JSON rows of a test file may lack it
    allowed = (str, int, float) if own.regression else (str, int)
    if not isinstance(value, allowed) or (own.regression and isinstance(value, bool)):
        expected = "a number" if own.regression else "a string, a whole number, true or false"
        raise UserError(f"{place}, column {column!r} is {_shown(value)}; it should be {expected}")
    word = _checked(value if isinstance(value, str) else json.dumps(value), column, place)
    if re.search(r"[\t\r\n]", word):
        raise UserError(
            f"{place}, column {column!r} is {word!r}; it should have neither tabs nor line breaks,"
            " which files of predictions cannot hold"
        )
    return word


def _checked(text: str, column: str, place: str) -> str:
    text = text.strip()
    if not text:
        raise UserError(f"{place}, column {column!r} is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can have half of a surrogate pair, which tokenizers refuse
        raise UserError(f"{place}, column {column!r} is not valid Unicode: {error.reason}") from error
    return text


def _shown(value: object) -> str:
    return "null" if value is None else reprlib.repr(value)


def _read_records(path: Path, needed: Sequence[str]) -> list[tuple[int, dict[str, object]]]:
    """The line number and the values by column, with at least the `needed` ones, of each row."""
    name = Path(path.name.lower())
    suffix = Path(name.stem).suffix if name.suffix == ".gz" else name.suffix
    if suffix in DELIMITERS:
        return list(_delimited_records(path, DELIMITERS[suffix], needed))
    if suffix in JSON_SUFFIXES:
        return list(_json_records(path, needed))
    if name.suffix == ".parquet":
        return list(_parquet_records(path, needed))
    suffixes = ", ".join((*DELIMITERS, *JSON_SUFFIXES))
    raise UserError(
        f"{path} has an unknown format; its name should end in one of {suffixes}, in these and .gz, or in .parquet"
    )


def _parquet_records(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, object]]]:
    """Rows are numbered from 1, as the lines of a JSONL file."""
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            repeated = [name for name, count in Counter(names).items() if count > 1]
            if repeated:
                raise UserError(f"{path} has the column {repeated[0]!r} more than once")
            _check_names(names, needed, str(path))
            records = file.read().to_pylist()
    except (OSError, ArrowException, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    yield from enumerate(records, 1)


def _delimited_records(path: Path, delimiter: str, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, object]]]:
    rows = _read_delimited(path, delimiter)
    while rows and not rows[-1][1]:  # blank lines at the end
        rows.pop()
    (line, names), *rows = rows or [(1, [])]
    if not names:
        raise UserError(f"{path}, line {line} is blank; it should name the columns")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{path}, line {line} names the column {repeated[0]!r} more than once")
    _check_names(names, needed, f"{path}, line {line}")
    for line, fields in rows:
        if len(fields) != len(names):
            raise UserError(f"{path}, line {line} has {wrong_count(fields, names)}, as the first line has")
        yield line, dict(zip(names, fields, strict=True))


def _read_delimited(path: Path, delimiter: str) -> list[tuple[int, list[str]]]:
    # Old files end records with carriage returns, and the csv module requires lines that end there.
    lines = (part for _, line in read_lines(path) for part in io.StringIO(line, newline=""))
    reader, rows = csv.reader(lines, delimiter=delimiter, strict=True), []
    limit = csv.field_size_limit(LONGEST_FIELD)  # of the whole process; the default is 131,072 characters
    try:
        while True:
            start = reader.line_num + 1
            rows.append((start, next(reader)))
    except StopIteration:
        return rows
    except csv.Error as error:
        raise UserError(f"{path}: the row that starts in line {start} is broken: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _json_records(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, object]]]:
    lines = [(number, line.strip()) for number, line in read_lines(path)]
    while lines and not lines[-1][1]:  # blank lines at the end
        lines.pop()
    for number, line in lines:
        place = f"{path}, line {number}"
        try:
            record = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:  # the latter: nested too deeply
            reason = getattr(error, "msg", error)  # without JSON's position, which is relative to the line
            raise UserError(f"{place} is not a JSON object, as each line should be: {reason}") from error
        if not isinstance(record, dict):
            raise UserError(f"{place} is not a JSON object, as each line should be, but {_shown(record)}")
        _check_names(record, needed, place)
        yield number, record


def _check_names(names: Iterable[str], needed: Sequence[str], place: str) -> None:
    for name in needed:
        if name not in names:
            raise UserError(f"{place} has no column {name!r}; it has {', '.join(map(repr, names)) or 'none'}")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if repeated:
        raise ValueError(f"it has {repeated[0]!r} more than once")
    return dict(pairs)
