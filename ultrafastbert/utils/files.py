"""Files and directories that are complete or absent after a crash, JSON that shows damage, and files of tokenizers."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

CHECKSUM = "checksum"
"""The key of a sealed JSON object that holds the hash of the others."""
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


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with the hash of its other keys in `CHECKSUM`, so that `is_intact` notices any change."""
    return content | {CHECKSUM: _checksum(content)}


def is_intact(content: dict[str, Any]) -> bool:
    """Whether a sealed object has not changed; True for one without a checksum, as earlier versions wrote them."""
    if not isinstance(content, dict):
        return False
    return CHECKSUM not in content or content[CHECKSUM] == _checksum(content)


def _checksum(content: dict[str, Any]) -> str:
    others = {name: value for name, value in content.items() if name != CHECKSUM}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
