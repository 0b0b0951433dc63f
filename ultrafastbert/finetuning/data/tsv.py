"""Numbered lines of text files, and the tab-separated files of GLUE.

Notable:
- A line ends at a line feed and nowhere else: `str.splitlines` would also split texts at U+2028, U+0085 and others.
- Quotation marks are text: GLUE's files quote nothing, and many sentences have a single quotation mark.
"""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ultrafastbert.utils.errors import UserError


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the number, from 1, and the text of each line with its line end, without a byte order mark.

    Args:
        path: UTF-8 text, compressed if the name ends in `.gz`.

    Raises:
        UserError: the file cannot be read, or a line is not UTF-8 or has a null byte; names file and line.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield number, _decoded(line, path, number)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read{f' after line {number}' * (number > 0)}: {reason}") from error


def _decoded(line: bytes, path: Path, number: int) -> str:
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{line[error.start]:02x} at offset {error.start} of the line"
        raise UserError(f"{path}, line {number} is not UTF-8: {byte}") from error
    if "\0" in text:
        raise UserError(f"{path}, line {number} has a null byte; it should be UTF-8 text")
    return text


def read_tsv(
    path: Path, columns: Sequence[str], header: Sequence[str] | None = None, broken: list[int] | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Yields the line number and the values of `columns`, without surrounding blanks, of each row.

    Args:
        path: a file whose rows end in a line feed, with or without a carriage return, and whose columns are
            separated by tabs.
        columns: their names in the header; other columns are ignored.
        header: the names of all columns of a file without a header.
        broken: skip rows with more or fewer columns than the header, and append their line numbers to this list.
            None: such a row is an error.

    Raises:
        UserError: as `read_lines`; or the file is empty, has no rows, lacks a column, or has a broken row.
    """
    names, rows = header, 0
    for number, line in read_lines(path):
        fields = line.removesuffix("\n").removesuffix("\r").split("\t")
        if names is None:
            names = [field.strip() for field in fields]
            _check_columns(names, columns, path)
        elif len(fields) == len(names):
            row = dict(zip(names, fields, strict=True))
            rows += 1
            yield number, [row[column].strip() for column in columns]
        elif broken is not None:
            broken.append(number)
        else:
            raise UserError(f"{path}, line {number} has {wrong_count(fields, names)}, separated by tabs")
    if names is None:
        raise UserError(f"{path} is empty")
    if not rows:
        raise UserError(f"{path} has no rows{' below its header' if header is None else ''}")


def wrong_count(fields: Sequence[str], names: Sequence[str]) -> str:
    """The end of a message about a row with more or fewer columns than the header."""
    return f"{len(fields)} column{'s' * (len(fields) != 1)}; it should have {len(names)}"


def _check_columns(names: Sequence[str], columns: Sequence[str], path: Path) -> None:
    if any(names.count(column) != 1 for column in columns):
        found, expected = (", ".join(map(repr, each)) for each in (names, columns))
        raise UserError(f"{path}, line 1 names the columns {found}; it should name each of {expected} once")
