"""Writing files and directories that are complete or absent after a crash, and the files of a tokenizer."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt")


def fsync(path: Path) -> None:
    """Flushes a file, or the entries of a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces a file atomically: after a crash it has the old content or the new one. Text is encoded as UTF-8."""
    aside = beside(path, "tmp")
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        fsync(aside)
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def beside(path: Path, suffix: str) -> Path:
    """A hidden path in the same directory, for a file while it is written or replaced: `.NAME.SUFFIX`."""
    return path.with_name(f".{path.name}.{suffix}")


def new_directory(path: str | Path) -> Path:
    """The absolute path of a new directory; raises a FileExistsError if it exists and is not an empty directory."""
    path = Path(path).resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not an empty directory")
    return path


@contextmanager
def written_whole(destination: Path) -> Iterator[Path]:
    """A temporary directory that is renamed to `destination` at the end, or removed after an error."""
    directory = beside(destination, f"{os.getpid()}.partial")
    directory.mkdir(parents=True)
    try:
        yield directory
        directory.rename(destination)
    except BaseException as error:
        shutil.rmtree(directory, ignore_errors=True)
        if isinstance(error, SafetensorError):  # usually a full disk
            raise OSError(f"{destination} cannot be written: {error}") from error
        raise


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copies the tokenizer's files that `source` has."""
    for name in TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)
