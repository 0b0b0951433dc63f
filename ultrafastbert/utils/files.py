"""What makes files survive a crash."""

import os
from pathlib import Path


def fsync(path: Path) -> None:
    """Forces a file, or the names in a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces a file such that it is the old one or the new one, whatever happens in between; text is UTF-8."""
    aside = beside(path, "tmp")
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        fsync(aside)
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def beside(path: Path, suffix: str) -> Path:
    """The hidden name beside `path` under which it is written, or kept until it is replaced."""
    return path.with_name(f".{path.name}.{suffix}")
