"""Writing files that are complete or absent after a crash."""

import os
from pathlib import Path


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
