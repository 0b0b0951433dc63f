"""A task of one's own, from CSV, TSV or JSONL files with named columns.

Notable:
- What a file says is taken literally: labels are words (`1` and `1.0` are two classes), nothing is a missing value but
  what is empty, and no delimiter or encoding is guessed. Only blanks around texts and labels are left out.
- Broken rows end the reading with an error that names file and line; a record of several lines has the first's number.
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

from ultrafastbert.finetuning.data.tasks import Split, Task, TaskData
from ultrafastbert.finetuning.data.tsv import read_lines
from ultrafastbert.utils.errors import UserError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_SUFFIXES = (".jsonl", ".json")
LONGEST_FIELD = 2**31 - 1


@dataclass(frozen=True)
class Columns:
    """Which columns of the files are read, and what the labels are."""

    texts: tuple[str, ...]
    label: str
    regression: bool

    def __post_init__(self):
        if not 1 <= len(self.texts) <= 2:
            raise UserError(f"text_columns is {list(self.texts)}; it should name one or two columns")
        if len({*self.texts, self.label}) != len(self.texts) + 1:
            names = [*self.texts, self.label]
            raise UserError(f"text_columns and label_column are {names}; they should be different columns")


@dataclass
class Table:
    """The rows of a file: the line where each starts, its texts, and its label as a word, if the file has labels."""

    path: Path
    lines: list[int]
    texts: list[tuple[str, ...]]
    words: list[str] | None

    def place(self, row: int) -> str:
        return f"{self.path}, line {self.lines[row]}"


def load_table(
    name: str,
    train: str | Path,
    validation: str | Path | None,
    test: str | Path | None,
    text_columns: Sequence[str],
    label_column: str,
    regression: bool,
    holdout: float,
    seed: int,
) -> TaskData:
    """The rows of a task of one's own; evaluated by accuracy (and F1), regression by Spearman's correlation.

    The classes are the labels of the training file, sorted; as numbers if all of them are. All splits have the task's
    name as title and numbers from 0 as ids.

    Args:
        name: of the task; letters, digits and `_.-`, as it becomes part of file names.
        train: a .csv, .tsv, .jsonl or .json file (JSON: an object a line), in UTF-8, also with .gz at the end of its
            name. CSV and TSV begin with the names of their columns, and quote with `"`.
        validation: file of the rows to evaluate on. None: training rows are held out for it, as their notes say.
        test: file of the rows to predict; None: none. It may lack the label column.
        text_columns: the column of the text, or the two of a pair of texts.
        label_column: the column of the label: a class or, in regression, a finite number.
        regression: whether labels are numbers.
        holdout: share of the training rows to hold out, in (0, 1); each class stays in training. Without effect where
            there is a validation file.
        seed: decides which rows are held out.

    Raises:
        UserError: an argument is wrong; a file cannot be read or lacks a column; a text or label is empty or of the
            wrong type; a label is not in the training file; training has one class only; or `holdout` leaves one of
            the two parts without rows or training without a class. Names file and line.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"the task's name is {name!r}; it should be letters, digits, '_', '-' and '.'")
    columns = Columns(tuple(text_columns), label_column, regression)
    table = _read_table(Path(train).expanduser(), columns)
    task = _task(name, table, columns)
    rows = _split(task, table)
    if validation is None:
        rows, evaluation = _hold_out(rows, task, table.path, holdout, seed)
    else:
        evaluation = _split(task, _read_table(Path(validation).expanduser(), columns))
    tests = []
    if test is not None:
        tests.append(_split(task, _read_table(Path(test).expanduser(), columns, needs_labels=False)))
    return TaskData(task, rows, [evaluation], tests)


def _task(name: str, table: Table, columns: Columns) -> Task:
    if columns.regression:
        return Task(name, None, "pearson_spearman", "spearman")
    labels = sorted(set(table.words))
    if len(labels) == 1:
        raise UserError(f"{table.path} has {labels[0]!r} only in column {columns.label!r}; it should have two classes")
    numbers = [_number(label) for label in labels]
    if None not in numbers:
        labels = [label for _, label in sorted(zip(numbers, labels, strict=True))]
    return Task(name, tuple(labels), "accuracy_f1", "accuracy")


def _split(task: Task, table: Table) -> Split:
    labels = None
    if table.words is not None:
        labels = [_label(task, word, table.place(row)) for row, word in enumerate(table.words)]
    return Split(task.name, table.texts, labels, _numbers(len(table.texts)))


def _label(task: Task, word: str, place: str) -> int | float:
    if task.is_regression:
        number = _number(word)
        if number is None:
            raise UserError(f"{place}: the label is {word!r}; it should be a finite number")
        return number
    if word not in task.labels:
        raise UserError(f"{place}: the label {word!r} is not in the training file")
    return task.labels.index(word)


def _number(word: str) -> float | None:
    try:
        number = float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def _hold_out(rows: Split, task: Task, path: Path, holdout: float, seed: int) -> tuple[Split, Split]:
    """Training rows and validation rows, each in the order of the file."""
    if not 0 < holdout < 1:
        raise UserError(f"holdout is {holdout}; it should be greater than 0 and less than 1")
    count = max(1, round(holdout * len(rows)))
    held = _draw(rows.labels, count, seed, one_stays=not task.is_regression)
    if len(held) < count or count == len(rows):
        kept = "a row" if task.is_regression else "a row of each class"
        raise UserError(f"{path} has too few rows ({len(rows)}) to hold out {count} and leave {kept} to train on")
    note = f"{count} of the {len(rows)} rows of {path}, held out at random (seed {seed})"
    training = [row for row in range(len(rows)) if row not in held]
    return _selection(rows, training, []), _selection(rows, sorted(held), [note])


def _draw(labels: Sequence[int] | Sequence[float], count: int, seed: int, one_stays: bool) -> set[int]:
    """At most `count` rows, drawn at random; with `one_stays`, a row of each label is left."""
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)
    left, held = Counter(labels), set()
    for row in order:
        if len(held) < count and (left[labels[row]] > 1 or not one_stays):
            left[labels[row]] -= 1
            held.add(row)
    return held


def _selection(split: Split, rows: Sequence[int], notes: list[str]) -> Split:
    texts, labels = [split.texts[row] for row in rows], [split.labels[row] for row in rows]
    return Split(split.title, texts, labels, _numbers(len(rows)), notes)


def _read_table(path: Path, columns: Columns, needs_labels: bool = True) -> Table:
    """The texts and labels of a file, none of them empty; labels are None if they may be and no row has one."""
    records = _read_records(path, [*columns.texts] + [columns.label] * needs_labels)
    if not records:
        raise UserError(f"{path} has no rows")
    has_labels = needs_labels or any(columns.label in record for _, record in records)
    lines, texts, words = [], [], []
    for line, record in records:
        place = f"{path}, line {line}"
        lines.append(line)
        texts.append(tuple(_text(record, column, place) for column in columns.texts))
        if has_labels:
            words.append(_word(record, columns, place))
    return Table(path, lines, texts, words if has_labels else None)


def _text(record: dict, column: str, place: str) -> str:
    value = record[column]
    if not isinstance(value, str):
        raise UserError(f"{place}, column {column!r} is {_shown(value)}; it should be text")
    return _checked(value, column, place)


def _word(record: dict, columns: Columns, place: str) -> str:
    """The label as a word: of JSON's values, those that can be written in one way only."""
    value = record.get(columns.label)  # JSON's test rows are to have all a label or none
    allowed = (str, int, float) if columns.regression else (str, int)
    if not isinstance(value, allowed) or (columns.regression and isinstance(value, bool)):
        expected = "a number" if columns.regression else "a string, a whole number, true or false"
        raise UserError(f"{place}, column {columns.label!r} is {_shown(value)}; it should be {expected}")
    word = _checked(value if isinstance(value, str) else json.dumps(value), columns.label, place)
    if re.search(r"[\t\r\n]", word):
        raise UserError(
            f"{place}, column {columns.label!r} is {word!r}; it should have neither tabs nor line breaks, "
            "for files of predictions to hold it"
        )
    return word


def _checked(text: str, column: str, place: str) -> str:
    text = text.strip()
    if not text:
        raise UserError(f"{place}, column {column!r} is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write one half of a character, which no tokenizer takes
        raise UserError(f"{place}, column {column!r} is not valid Unicode: {error.reason}") from error
    return text


def _shown(value: object) -> str:
    return "null" if value is None else reprlib.repr(value)


def _read_records(path: Path, needed: list[str]) -> list[tuple[int, dict]]:
    """The line number and the values by column (`needed` are there) of each row; blank lines at the end are none."""
    name = Path(path.name.lower())
    suffix = Path(name.stem).suffix if name.suffix == ".gz" else name.suffix
    if suffix in DELIMITERS:
        return list(_delimited_records(path, DELIMITERS[suffix], needed))
    if suffix in JSON_SUFFIXES:
        return list(_json_records(path, needed))
    kinds = ", ".join((*DELIMITERS, *JSON_SUFFIXES))
    raise UserError(f"{path} is of an unknown kind; its name should end in one of {kinds}, then .gz or nothing")


def _delimited_records(path: Path, delimiter: str, needed: list[str]) -> Iterator[tuple[int, dict]]:
    (line, names), *rows = _without_blank_end(_read_delimited(path, delimiter)) or [(1, [])]
    if not names:
        raise UserError(f"{path}, line {line} is blank; it should name the columns")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{path}, line {line} names the column {repeated[0]!r} more than once")
    _check_names(names, needed, f"{path}, line {line}")
    for line, fields in rows:
        if len(fields) != len(names):
            columns = f"{len(fields)} column{'s' * (len(fields) != 1)}"
            raise UserError(f"{path}, line {line} has {columns}; it should have {len(names)}, as the first line has")
        yield line, dict(zip(names, fields, strict=True))


def _read_delimited(path: Path, delimiter: str) -> list[tuple[int, list[str]]]:
    # Cut at carriage returns too, which end a record in files of old: the csv module wants no other lines.
    lines = (part for _, line in read_lines(path) for part in io.StringIO(line, newline=""))
    reader, rows = csv.reader(lines, delimiter=delimiter, strict=True), []
    limit = csv.field_size_limit(LONGEST_FIELD)  # of the whole process; by default texts end at 131,072 characters
    try:
        while True:
            start = reader.line_num + 1
            rows.append((start, next(reader)))
    except StopIteration:
        return rows
    except csv.Error as error:
        raise UserError(f"{path}: the record that starts in line {start} is broken: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _json_records(path: Path, needed: list[str]) -> Iterator[tuple[int, dict]]:
    for number, line in _without_blank_end([(number, line.strip()) for number, line in read_lines(path)]):
        place = f"{path}, line {number}"
        try:
            record = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:  # the latter: nested too deeply
            reason = getattr(error, "msg", error)  # without the place, which is one in the line
            raise UserError(f"{place} is not a JSON object, as each line should be: {reason}") from error
        if not isinstance(record, dict):
            raise UserError(f"{place} is not a JSON object, as each line should be, but {_shown(record)}")
        _check_names(record, needed, place)
        yield number, record


def _check_names(names: Iterable[str], needed: list[str], place: str) -> None:
    for name in needed:
        if name not in names:
            raise UserError(f"{place} has no column {name!r}, it has: {', '.join(map(repr, names)) or 'none'}")


def _object(pairs: list[tuple[str, object]]) -> dict:
    repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if repeated:
        raise ValueError(f"it has {repeated[0]!r} more than once")
    return dict(pairs)


def _without_blank_end(rows: list[tuple[int, list | str]]) -> list[tuple[int, list | str]]:
    while rows and not rows[-1][1]:
        rows.pop()
    return rows
