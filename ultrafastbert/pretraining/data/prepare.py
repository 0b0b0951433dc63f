"""Finds prepared data in the cache, or prepares it.

Notable:
- A request is identified by its options and by metadata of its sources (of files: path, size and modification time),
  so prepared data is found again without reading any text.
- Data is built in a hidden directory, under a lock, and renamed when it is complete. An interrupted preparation
  leaves nothing that looks finished, and of several processes that want the same data only one builds it.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout

from ultrafastbert.pretraining.data.arguments import DataArguments
from ultrafastbert.pretraining.data.packed import MANIFEST, DataError, PackedData, open_packed
from ultrafastbert.pretraining.data.sources import Source, find_sources, source_names
from ultrafastbert.utils.files import fsync

RECIPE = 1
"""Part of every request; to be increased when the same text and options give different bytes than before."""


def prepare(arguments: DataArguments, *, progress: bool = True) -> PackedData:
    """Opens the data that the arguments describe, and prepares it first if necessary.

    Args:
        arguments: sources and options. A source that is a directory of prepared data is opened as it is. Options that
            the command line names (`arguments.given`) must then equal those it was prepared with; others give way. If
            `given` is None, options that are not at their defaults count as given.
        progress: show progress and a summary on stderr.

    Raises:
        DataError: a source is missing, broken or too small, prepared data is damaged or contradicts the arguments, or
            the cache directory cannot be written.
    """
    names = source_names(arguments.source)
    first = Path(names[0]).expanduser()
    if len(names) == 1 and (first / MANIFEST).is_file():
        return _open_as_source(first, arguments, progress)

    sources = find_sources(arguments.source, arguments)
    validation = find_sources(arguments.validation_source, arguments)
    request = _request(arguments, sources, validation)
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    directory = _cache_directory(arguments) / f"{_label(names[0])}-{digest[:16]}"
    if not directory.exists():
        with _new_directory(directory, progress) as partial:
            if partial is not None:
                # Imported here because it needs libraries that opening prepared data does not.
                from ultrafastbert.pretraining.data.build import build

                build(partial, arguments, sources, validation, request, progress)
                if _request(arguments, sources, validation) != request:
                    names += source_names(arguments.validation_source)
                    raise DataError(f"source {', '.join(names)} changed while it was read: prepare it again")
    packed = open_packed(directory)
    if progress:
        print(f"Prepared data: {directory}", file=sys.stderr)
    return packed


def _open_as_source(directory: Path, arguments: DataArguments, progress: bool) -> PackedData:
    """Opens prepared data; what the command line says must agree with it, what a file or default says gives way."""
    given, packed = arguments.given, open_packed(directory)
    options, ignored = packed.manifest["request"]["options"], []
    for field in dataclasses.fields(arguments):
        value, is_default = getattr(arguments, field.name), getattr(arguments, field.name) == field.default
        is_given = field.name in given if given is not None else not is_default
        if field.name == "validation_source":
            if value is not None and is_given:
                raise DataError(
                    f"validation_source is {value!r}, but the data in {directory} is prepared and has its own"
                    " validation texts: omit validation_source, or prepare the text again"
                )
            ignored += [] if value is None else [f"its own validation texts, not {value!r}"]
        elif field.name in options and value != options[field.name]:
            if is_given:
                raise DataError(
                    f"{field.name} is {value!r}, but the data in {directory} was prepared with "
                    f"{options[field.name]!r}: omit {field.name}, or prepare the text again"
                )
            ignored.append(f"{field.name} {options[field.name]!r}" + f", not {value!r}" * (not is_default))
    if ignored and progress:
        print(f"Prepared data: {directory}, with its own settings: {'; '.join(ignored)}", file=sys.stderr)
    return packed


def _request(arguments: DataArguments, sources: list[Source], validation: list[Source]) -> dict:
    """Everything that determines the bytes of prepared data, as JSON."""
    options = dataclasses.asdict(arguments)
    for name in ("source", "validation_source", "streaming", "cache_dir"):
        del options[name]  # identities replace the first two, the others change no byte
    try:
        identities = {"sources": [source.identity() for source in sources]}
        if validation:
            identities["validation_sources"] = [source.identity() for source in validation]
    except OSError as error:
        raise DataError(f"source {error.filename} cannot be read: {error.strerror}") from error
    return {
        "recipe": RECIPE,
        **identities,
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


def _label(name: str) -> str:
    """A part of the source's name that is valid in file names, for people to recognize."""
    stem = Path(name).name.split(".")[0]
    return re.sub(r"[^\w-]+", "-", stem).strip("-")[:40] or "data"


def _cache_directory(arguments: DataArguments) -> Path:
    if arguments.cache_dir is not None:
        return Path(arguments.cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ultrafastbert"


@contextmanager
def _new_directory(directory: Path, progress: bool) -> Iterator[Path | None]:
    """Yields an empty directory that becomes `directory` at the end, or None if another process has built it.

    Raises:
        DataError: in place of every OSError; sources raise a DataError for theirs.
    """
    partial, lock = _partial_and_lock(directory.parent, directory.name)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _acquire(lock, progress):
            if directory.exists():
                yield None
                return
            _remove_abandoned(directory.parent, directory.name)
            partial.mkdir()
            try:
                yield partial
                for path in [*partial.rglob("*"), partial]:
                    fsync(path)
                partial.rename(directory)
                fsync(directory.parent)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"prepared data cannot be written to {directory.parent}: {error.strerror or error} "
            "(cache_dir chooses another directory)"
        ) from error


def _partial_and_lock(parent: Path, name: str) -> tuple[Path, FileLock]:
    return parent / f".{name}.partial", FileLock(parent / f".{name}.lock")


def _acquire(lock: FileLock, progress: bool) -> AbstractContextManager:
    """Acquires the lock, however long it takes; the context manager releases it."""
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        if progress:
            print("Another process is preparing the same data: waiting for it", file=sys.stderr)
        return lock.acquire()


def _remove_abandoned(parent: Path, name: str) -> None:
    """Removes partial directories of processes that died: those whose lock is free or, for `name`, the caller's."""
    for partial in parent.glob(".*.partial"):
        owner = partial.name[1 : -len(".partial")]
        if owner == name:
            shutil.rmtree(partial)
            continue
        with suppress(Timeout), _partial_and_lock(parent, owner)[1].acquire(timeout=0):
            shutil.rmtree(partial)
