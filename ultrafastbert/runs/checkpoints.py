"""Checkpoints, written atomically and verified when they are read.

A checkpoint is a directory `step-N` with the state that accelerate saves (model, optimiser, random generators) and
`checkpoint.json`, which lists the files with their hashes and has a hash of itself. It is written under a hidden name,
forced to disk, and then renamed, so that a run that is killed leaves no incomplete checkpoint. A checkpoint that was
damaged later does not match its hashes and is skipped.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import beside, fsync, hash_file, is_intact, seal

MANIFEST = "checkpoint.json"


class CheckpointError(UserError):
    """A checkpoint cannot be written, read or used; the message names it."""


def write_directory(path: Path, write: Callable[[Path], None], accelerator: Accelerator) -> None:
    """Writes the directory `path` atomically, replacing an older one.

    `write` is called in every process with an empty directory to fill. If it fails in one process, it fails in all of
    them, and the files written so far are removed.
    """
    aside, old = beside(path, "tmp"), beside(path, "old")

    def begin() -> None:
        _remove(aside)
        aside.mkdir(parents=True)

    def finish() -> None:
        for file in aside.rglob("*"):
            fsync(file)
        if path.exists():
            _remove(old)
            path.rename(old)
        aside.rename(path)
        fsync(path.parent)
        _remove(old)

    try:
        _in_all(accelerator, begin, accelerator.is_main_process)
        _in_all(accelerator, lambda: write(aside))
        _in_all(accelerator, finish, accelerator.is_main_process)
    except BaseException:
        if accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
        raise


def _in_all(accelerator: Accelerator, action: Callable[[], object], here: bool = True) -> None:
    """Calls `action` in the processes where `here` is true and waits for all of them; if one fails, all fail."""
    failure = None
    try:
        if here:
            action()
    except Exception as error:
        failure = error
    messages = [message for message in gather_object([failure and f"{failure}"]) if message is not None]
    if failure is not None:
        raise failure
    if messages:
        raise OSError(f"another process failed: {messages[0]}")


def recover(directory: Path, names: list[str]) -> None:
    """Cleans up after a killed run: of the files `names`, removes unfinished ones and restores those it moved."""
    for path in (directory / name for name in names):
        _remove(beside(path, "tmp"))
        old = beside(path, "old")
        if old.exists() and not path.exists():
            old.rename(path)
        _remove(old)


def recover_checkpoints(directory: Path) -> None:
    """`recover` for all checkpoints in a directory."""
    matches = (re.fullmatch(r"\.(step-\d+)\.(tmp|old)", path.name) for path in directory.glob(".step-*"))
    recover(directory, [match[1] for match in matches if match])


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def hash_files(directory: Path) -> dict[str, str]:
    """SHA-256 of all files in a directory, by their paths in it."""
    return {
        str(file.relative_to(directory)): hash_file(file) for file in sorted(directory.rglob("*")) if file.is_file()
    }


def changed_files(directory: Path, hashes: dict[str, str]) -> list[str]:
    """The files that do not have these hashes; raises an OSError if one is missing."""
    return [name for name, expected in hashes.items() if hash_file(directory / name) != expected]


def write_record(directory: Path, name: str, record: dict) -> None:
    """Writes `record`, of JSON types, to a file of `directory`, with the hashes of the other files and its own."""
    sealed = seal(json.loads(json.dumps(record | {"files": hash_files(directory)})))
    (directory / name).write_text(json.dumps(sealed, indent=2), encoding="utf-8")


def read_record(directory: Path, name: str) -> dict | None:
    """What `write_record` wrote; None if there is no such file, or the directory has changed since."""
    try:
        record = json.loads((directory / name).read_text(encoding="utf-8"))
        damaged = not is_intact(record) or changed_files(directory, record.get("files", {}))
        return None if damaged or type(record["step"]) is not int else record
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def save_checkpoint(accelerator: Accelerator, directory: Path, step: int, content: dict, keep: int) -> Path:
    """Writes `directory/step-N` and removes all but the newest `keep` checkpoints. All processes take part.

    `checkpoint.json` gets `content`, of JSON types, and the list of files.

    Raises:
        CheckpointError: the disk is full or the directory cannot be written; earlier checkpoints are untouched.
    """
    path = directory / f"step-{step}"

    def write(aside: Path) -> None:
        _in_all(accelerator, lambda: accelerator.save_state(str(aside)))
        if accelerator.is_main_process:
            write_record(aside, MANIFEST, content)

    try:
        write_directory(path, write, accelerator)
    except Exception as error:  # a full disk is an OSError, a RuntimeError of torch or an error of safetensors
        raise CheckpointError(f"checkpoint {path} could not be written: {error}") from error
    if accelerator.is_main_process:
        for old in numbered_checkpoints(directory)[:-keep]:
            shutil.rmtree(old)
    return path


def find_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint in `directory`; prints which ones it skips."""
    for path in reversed(numbered_checkpoints(directory)):
        try:
            read_checkpoint(path)
            return path
        except CheckpointError as error:
            print(f"skipped: {error}")
    return None


def read_checkpoint(path: Path) -> dict:
    """The content of `checkpoint.json`, after verifying its checksum, its progress and the hashes of the files.

    Raises:
        CheckpointError: a file is missing or has changed, `checkpoint.json` cannot be read, or, in one of version 0.1,
            which has no checksum, the progress cannot be that of this step.
    """
    try:
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        damaged = changed_files(path, content["files"])
        if not is_intact(content) or not _is_possible(content.get("progress", {}), path):
            damaged.append(MANIFEST)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path} is incomplete: {error!r}") from error
    if damaged:
        raise CheckpointError(f"checkpoint {path} is damaged: {', '.join(damaged)} changed since it was written")
    return content


def _is_possible(progress: dict, path: Path) -> bool:
    """Whether a run can have this progress at a checkpoint with this name."""
    others = {name: value for name, value in progress.items() if name != "backends"}  # which are names
    numbers = [value for value in others.values() if value is not None and not isinstance(value, list)]
    if not all(isinstance(number, int | float) and 0 <= number < float("inf") for number in numbers):
        return False
    counts = [progress.get(name, 0) for name in ("step", "sequences", "rows", "tokens", "skipped", "skipped_in_a_row")]
    named = re.fullmatch(r"step-\d+", path.name) is None or progress.get("step", step_of(path)) == step_of(path)
    return named and all(type(count) is int for count in counts) and max(counts[4:]) <= counts[0]


def numbered_checkpoints(directory: Path) -> list[Path]:
    """All `step-N` directories, oldest first, complete or not."""
    paths = [path for path in directory.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and path.is_dir()]
    return sorted(paths, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The N of a checkpoint `step-N`."""
    return int(checkpoint.name.removeprefix("step-"))
