"""Writing files that are complete or absent after a crash, and JSON that does not hide damage."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

CHECKSUM = "checksum"
"""The key of a sealed JSON object that holds the hash of the others."""


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
