"""Prepared data: found if it was made before, made otherwise.

Notable:
- A request is known by its options and by what its sources are (files by path, size and time of change), so
  that it is found again without reading any text.
- Data is made in a directory of its own, under a lock, and renamed when whole: an interrupted preparation
  leaves nothing that looks finished, and processes that want the same data at once make it once.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout

from ultrafastbert.pretraining.data.arguments import DataArguments
from ultrafastbert.pretraining.data.packed import MANIFEST, DataError, PackedData, open_packed
from ultrafastbert.pretraining.data.sources import Source, find_sources, source_names
from ultrafastbert.utils.files import fsync

RECIPE = 1
"""Part of every request: raised when the same text and options come to give other bytes."""


def prepare(arguments: DataArguments, *, progress: bool = True) -> PackedData:
    """Finds the data that the arguments describe, or makes it.

    Args:
        arguments: sources and options; a source that is a directory of prepared data is opened as it is, and
            options that are not at their defaults must be those that it was made with (a default that was
            given cannot be told from one that was not).
        progress: show progress bars and a summary on stderr.

    Raises:
        DataError: if a source is missing, broken or too small, if prepared data is damaged or contradicts the
            arguments, or if the cache directory cannot be written.
    """
    names = source_names(arguments)
    if len(names) == 1 and (Path(names[0]).expanduser() / MANIFEST).is_file():
        return _open_as_source(Path(names[0]).expanduser(), arguments)

    sources = find_sources(arguments)
    request = _request(arguments, sources)
    directory = _cache_directory(arguments) / f"{_label(names[0])}-{_digest(request)[:16]}"
    if not directory.exists():
        with _making(directory, progress) as partial:
            if partial is not None:
                from ultrafastbert.pretraining.data.build import (
                    build,  # needs libraries that data made elsewhere does without
                )

                build(partial, arguments, sources, request, progress)
                if _request(arguments, sources) != request:
                    raise DataError(f"source {', '.join(names)} changed while it was read: prepare it again")
    packed = open_packed(directory)
    if progress:
        print(f"Prepared data: {directory}", file=sys.stderr)
    return packed


def _open_as_source(directory: Path, arguments: DataArguments) -> PackedData:
    packed = open_packed(directory)
    options = packed.manifest["request"]["options"]
    for field in dataclasses.fields(arguments):
        value = getattr(arguments, field.name)
        if field.name in options and value not in (field.default, options[field.name]):
            raise DataError(
                f"{field.name} is {value!r}, but the prepared data in {directory} was made with "
                f"{options[field.name]!r}: leave {field.name} out, or prepare the text anew"
            )
    return packed


def _request(arguments: DataArguments, sources: list[Source]) -> dict:
    """All that determines the bytes, as JSON."""
    options = dataclasses.asdict(arguments)
    for name in ("source", "streaming", "cache_dir"):  # the identities tell the first, the others change no byte
        del options[name]
    try:
        identities = [source.identity() for source in sources]
    except OSError as error:
        raise DataError(f"source {error.filename} cannot be read: {error.strerror}") from error
    return {
        "recipe": RECIPE,
        "sources": identities,
        "options": options,
        "tokenizer": _tokenizer_identity(arguments.tokenizer),
        "tokenizers": version("tokenizers"),
    }


def _tokenizer_identity(name: str | None) -> str | None:
    if name is None or not Path(name).expanduser().is_dir():
        return name
    digest = hashlib.sha256()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        path = Path(name).expanduser() / file
        if not path.is_file():
            raise DataError(f"tokenizer {name} has no {file}: save it with `save_pretrained`")
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _digest(request: dict) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def _label(name: str) -> str:
    """What a person recognises the source by, as part of a file name."""
    stem = Path(name).name.split(".")[0]
    return re.sub(r"[^\w-]+", "-", stem).strip("-")[:40] or "data"


def _cache_directory(arguments: DataArguments) -> Path:
    if arguments.cache_dir is not None:
        return Path(arguments.cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ultrafastbert"


@contextmanager
def _making(directory: Path, progress: bool) -> Iterator[Path | None]:
    """Gives an empty directory that becomes `directory` at the end, or None if another process has made it.

    Raises:
        DataError: instead of any OSError, as sources report their own.
    """
    partial, lock = _partial_and_lock(directory.parent, directory.name)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _held(lock, progress):
            if directory.exists():
                yield None
                return
            _remove_abandoned(directory.parent, directory.name)
            partial.mkdir()
            try:
                yield partial
                _sync(partial)
                partial.rename(directory)
                fsync(directory.parent)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"cannot keep prepared data in {directory.parent}: {error.strerror or error} "
            "(cache_dir names another directory)"
        ) from error


def _partial_and_lock(parent: Path, name: str) -> tuple[Path, FileLock]:
    return parent / f".{name}.partial", FileLock(parent / f".{name}.lock")


def _held(lock: FileLock, progress: bool):
    """Acquires the lock, however long it takes; a context manager that releases it."""
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        if progress:
            print("Another process is preparing the same data: waiting for it", file=sys.stderr)
        return lock.acquire()


def _remove_abandoned(parent: Path, name: str) -> None:
    """Removes what processes left that died: partial directories whose lock is free, or the caller's own."""
    for partial in parent.glob(".*.partial"):
        owner = partial.name[1 : -len(".partial")]
        if owner == name:
            shutil.rmtree(partial)
            continue
        try:
            with _partial_and_lock(parent, owner)[1].acquire(timeout=0):
                shutil.rmtree(partial)
        except Timeout:
            pass


def _sync(directory: Path) -> None:
    for path in [*directory.rglob("*"), directory]:
        fsync(path)
