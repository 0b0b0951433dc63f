"""Where text comes from: files, Hub data sets, docstrings.

A source states its identity without being read, so that prepared data can be found again, and then yields its texts
one by one. Notable:
- A string that looks like a path is a path: a missing file never becomes a request to the Hub.
- Broken input ends the preparation with an error that names file and line. Nothing is skipped or repaired.
"""

import glob
import gzip
import importlib
import io
import itertools
import json
import lzma
import platform
import re
import reprlib
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Protocol

from ultrafastbert.pretraining.data.arguments import DataArguments
from ultrafastbert.pretraining.data.docstrings import docstring_files, docstring_packages, read_docstrings
from ultrafastbert.pretraining.data.packed import MANIFEST, DataError

KINDS = (".txt", ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".xz", ".zst")
FILE_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)
ROWS_AT_A_TIME = 256
BYTES_AT_A_TIME = 1 << 20

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class Source(Protocol):
    """One source of text."""

    name: str
    """For messages."""

    @property
    def size(self) -> int | None:
        """Bytes to read, None if that is not known in advance."""
        ...

    def identity(self) -> dict[str, Any]:
        """What determines the texts, as JSON; computed without reading them."""
        ...

    def texts(self, scratch: Path) -> Iterator[tuple[str, int]]:
        """Yields each text with the bytes read since the previous one; may write files to `scratch`."""
        ...


def find_sources(names: str | list[str] | None, arguments: DataArguments) -> list[Source]:
    """The sources that `names` names, in its order; the files of a glob are sorted.

    Args:
        names: `arguments.source` or `arguments.validation_source`; None names no source.
        arguments: how the sources are read.

    Raises:
        DataError: a file does not exist or is of an unknown kind, a glob matches nothing, or a string can be neither a
            path nor the name of a data set.
    """
    return [source for name in source_names(names) for source in _find(name, arguments)]


def source_names(names: str | list[str] | None) -> list[str]:
    """The names as a list."""
    return [names] if isinstance(names, str) else names or []


def _find(name: str, arguments: DataArguments) -> list[Source]:
    if name == "docstrings":
        return [Docstrings()]
    path = Path(name).expanduser()
    if path.is_file():
        return [TextFile(path, arguments)]
    if path.is_dir():
        if (path / MANIFEST).is_file():
            raise DataError(f"source {name} is prepared data, which cannot be combined with other sources")
        raise DataError(f"source {name} is a directory: name its files, for example with the glob {path / '*.txt'}")
    if glob.has_magic(name):
        paths = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        files: list[Source] = [TextFile(path, arguments) for path in paths if not path.is_dir()]
        if not files:
            raise DataError(f"source {name} matches no file")
        return files
    if path.exists():
        raise DataError(f"source {name} is not a regular file")
    looks_like_path = name.startswith(("/", "./", "../", "~")) or path.suffix in KINDS + COMPRESSIONS
    if looks_like_path or not _HUB_NAME.fullmatch(name):
        raise DataError(f"source {name} does not exist")
    return [HubDataset(name, arguments)]


class Docstrings:
    """Prose from the installed Python packages."""

    name = "docstrings"

    @property
    def size(self) -> int:
        """Bytes of the packages' Python files."""
        return sum(file.stat().st_size for file in docstring_files())

    def identity(self) -> dict[str, Any]:
        """Versions of the packages, and of Python, whose parser reads them."""
        return {"docstrings": docstring_packages(), "python": ".".join(platform.python_version_tuple()[:2])}

    def texts(self, scratch: Path) -> Iterator[tuple[str, int]]:
        """Yields paragraphs; see `read_docstrings`."""
        return read_docstrings()


@dataclass
class HubDataset:
    """One split of a data set on the Hugging Face Hub."""

    name: str
    arguments: DataArguments

    size = None

    def identity(self) -> dict[str, Any]:
        """The name and options of the data set, unresolved: no request to the Hub is needed."""
        given = self.arguments
        names = {"hub": self.name, "config": given.hub_config}
        return names | {"split": given.hub_split, "revision": given.hub_revision}

    def texts(self, scratch: Path) -> Iterator[tuple[str, int]]:
        """Yields the texts of a column, and their numbers of characters in place of bytes.

        Raises:
            DataError: the data set cannot be read, or has no such column of text.
        """
        column = self.arguments.text_column
        rows = itertools.count(1)
        for batch in self._batches():
            if column not in batch:
                raise DataError(f"data set {self.name} has no column {column!r}; it has: {_listed(batch)}")
            for text in batch[column]:
                _check_text(text, column, f"data set {self.name}, row {next(rows)}")
                yield text, len(text)

    def _batches(self) -> Iterator[dict[str, list]]:
        datasets = _import("datasets", f"reading {self.name} from the Hub")
        given = self.arguments
        options = {"split": given.hub_split, "revision": given.hub_revision, "streaming": given.streaming}
        try:
            rows = datasets.load_dataset(self.name, given.hub_config, **options)
            yield from rows.iter(batch_size=ROWS_AT_A_TIME)
        except Exception as error:  # whatever the network, the Hub or a data set's files raise
            raise DataError(
                f"data set {self.name} could not be read from the Hugging Face Hub: {error or type(error).__name__} "
                "(for a local file, give a path such as ./FILE.txt; without a network, use local files, "
                "`docstrings`, or data prepared elsewhere)"
            ) from error


class TextFile:
    """A local file of texts: lines (.txt), a field of JSON objects (.jsonl), or a column (.parquet).

    Raises:
        DataError: the name ends in none of `KINDS`, followed by one of `COMPRESSIONS` or not.
    """

    def __init__(self, path: Path, arguments: DataArguments):
        self.path, self.name, self.arguments = path, str(path), arguments
        lower = Path(path.name.lower())
        self.compression = lower.suffix if lower.suffix in COMPRESSIONS else ""
        self.kind = Path(lower.stem).suffix if self.compression else lower.suffix
        if self.kind not in KINDS:
            endings = f"{', '.join(KINDS)}, optionally followed by {', '.join(COMPRESSIONS)}"
            raise DataError(f"{path} is of an unknown kind: the names of files should end in {endings}")

    @property
    def size(self) -> int:
        """Bytes of the file, compressed if it is."""
        return self.path.stat().st_size

    def identity(self) -> dict[str, Any]:
        """Path, size and modification time; a hash of the contents would need to read all of them."""
        status = self.path.stat()
        return {"file": str(self.path.resolve()), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}

    def texts(self, scratch: Path) -> Iterator[tuple[str, int]]:
        """Yields each text with the bytes of the file read since the previous one.

        Raises:
            DataError: the file is broken, or has no such field or column of text.
            OSError: `scratch` cannot be written.
        """
        if self.kind == ".parquet":
            return self._parquet_texts(scratch)
        if self.kind == ".jsonl":
            return self._jsonl_texts()
        if self.arguments.sample_by == "paragraph":
            return self._paragraphs()
        return ((line, size) for _, line, size in self._lines())

    def _paragraphs(self) -> Iterator[tuple[str, int]]:
        lines: list[str] = []
        total = 0
        for _, line, size in self._lines():
            total += size
            if line.strip():
                lines.append(line.strip())
            elif lines:
                yield " ".join(lines), total
                lines, total = [], 0
        if lines:
            yield " ".join(lines), total

    def _jsonl_texts(self) -> Iterator[tuple[str, int]]:
        column = self.arguments.text_column
        for number, line, size in self._lines():
            if not line.strip():
                continue
            place = f"{self.path}, line {number}"
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError) as error:  # the latter: nested too deeply
                raise DataError(f"{place} is not valid JSON: {error}") from error
            if not isinstance(fields, dict):
                raise DataError(f"{place} should be a JSON object, it is {_shown(fields)}")
            if column not in fields:
                raise DataError(f"{place} has no field {column!r}; it has: {_listed(fields)}")
            _check_text(fields[column], column, place)
            yield fields[column], size

    def _parquet_texts(self, scratch: Path) -> Iterator[tuple[str, int]]:
        pa, pq = (_import(name, f"reading {self.path}") for name in ("pyarrow", "pyarrow.parquet"))
        column = self.arguments.text_column
        row = 0
        with self._on_disk(scratch) as file:
            try:
                table = pq.ParquetFile(file)
                if column not in table.schema_arrow.names:
                    names = _listed(table.schema_arrow.names)
                    raise DataError(f"{self.path} has no column {column!r}; it has: {names}")
                size_of_row = self.size / max(table.metadata.num_rows, 1)
                for batch in table.iter_batches(ROWS_AT_A_TIME, columns=[column]):
                    for text in batch.column(0).to_pylist():
                        row += 1
                        _check_text(text, column, f"{self.path}, row {row}")
                        yield text, int(row * size_of_row) - int((row - 1) * size_of_row)
            except (*FILE_ERRORS, pa.ArrowException) as error:
                raise DataError(f"{self.path} is broken after row {row}: {_reason(error)}") from error

    def _lines(self) -> Iterator[tuple[int, str, int]]:
        """Yields number, text and size of each line; sizes are bytes of the file, compressed ones included."""
        number = position = 0
        try:
            with self.path.open("rb") as file, self._decompressed(file) as lines:
                for number, line in enumerate(lines, 1):
                    yield number, self._decoded(line, number), file.tell() - position
                    position = file.tell()
        except FILE_ERRORS as error:
            raise DataError(f"{self.path} is broken after line {number}: {_reason(error)}") from error

    def _decoded(self, line: bytes, number: int) -> str:
        try:
            return line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            place = f"byte 0x{line[error.start]:02x} at offset {error.start} of the line"
            raise DataError(f"{self.path}, line {number} is not UTF-8: {place}") from error

    def _decompressed(self, file: io.BufferedReader) -> io.BufferedIOBase:
        if not self.compression:
            return file
        if not self.size:
            raise DataError(f"{self.path} is broken: it is empty, which a {self.compression} file never is")
        if self.compression == ".gz":
            return gzip.open(file)
        if self.compression == ".xz":
            return io.BufferedReader(_XzReader(file))
        pa = _import("pyarrow", f"reading {self.path}")  # `zstandard` would accept a truncated file
        return io.BufferedReader(pa.CompressedInputStream(file, "zstd"))

    @contextmanager
    def _on_disk(self, scratch: Path) -> Iterator[Path | IO[bytes]]:
        """The file, decompressed into `scratch` if necessary: .parquet is read from its end."""
        if not self.compression:
            yield self.path
            return
        with tempfile.TemporaryFile(dir=scratch) as whole:
            for block in self._blocks():
                whole.write(block)
            whole.flush()  # here, so that a full disk is not mistaken for a broken file
            yield whole

    def _blocks(self) -> Iterator[bytes]:
        """Yields the decompressed bytes."""
        try:
            with self.path.open("rb") as file, self._decompressed(file) as content:
                yield from iter(partial(content.read, BYTES_AT_A_TIME), b"")
        except FILE_ERRORS as error:
            raise DataError(f"{self.path} is broken after row 0: {_reason(error)}") from error


class _XzReader(io.RawIOBase):
    """The decompressed bytes of all streams of an .xz file; an error for anything else between or after them.

    `lzma.open` stops without an error at the first bytes after a stream that do not start another one, and so silently
    drops what follows padding or damage.
    """

    def __init__(self, file: IO[bytes]):
        self._file, self._stream = file, lzma.LZMADecompressor(lzma.FORMAT_XZ)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        content = b""
        while not content:
            compressed = b""
            if self._stream.eof:
                compressed = self._start_of_next_stream()
                if not compressed:
                    return 0
                self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
            elif self._stream.needs_input:
                compressed = self._file.read(io.DEFAULT_BUFFER_SIZE)
                if not compressed:
                    raise EOFError("the file ends in the middle of a compressed stream")
            content = self._stream.decompress(compressed, len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def _start_of_next_stream(self) -> bytes:
        """The first bytes read after the stream and its padding; none at the end of the file.

        Padding is null bytes, a multiple of four, as the sizes of streams are (The .xz File Format, section 2.2). So
        the next stream starts at a multiple of four.
        """
        start = self._stream.unused_data.lstrip(b"\0")
        while not start and (block := self._file.read(io.DEFAULT_BUFFER_SIZE)):
            start = block.lstrip(b"\0")
        position = self._file.tell() - len(start)
        if position % 4:
            raise lzma.LZMAError(f"padding ends at byte {position}, which is not a multiple of 4")
        return start


def _import(module: str, purpose: str) -> ModuleType:
    """Imports a library that is only needed for some sources."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"{purpose} needs `pip install {module.split('.')[0]}`") from error


def _check_text(text: object, column: str, place: str) -> None:
    if not isinstance(text, str):
        raise DataError(f"{place}: {column!r} should be text, it is {_shown(text)}")


def _shown(value: object) -> str:
    return "null" if value is None else f"{type(value).__name__} {reprlib.repr(value):.50}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
