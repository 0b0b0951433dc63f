"""The directory of a run: its files, its lock, and the checkpoint that a run starts from."""

import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ultrafastbert.runs.checkpoints import (
    MANIFEST,
    find_checkpoint,
    numbered_checkpoints,
    read_checkpoint,
    recover,
    recover_checkpoints,
    step_of,
)
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import write_atomically

CHECKPOINTS = "checkpoints"
FINAL = "final"
PLOTS = "plots"
METRICS = "metrics.jsonl"
CONFIG = "config.yaml"
STARTS = "starts.jsonl"
NAMES = [CHECKPOINTS, FINAL, PLOTS, METRICS, CONFIG, STARTS]
"""All that a run writes in its directory."""

TRAINING_RECORD = "pretraining.json"
"""In `FINAL`: the budget spent on the model, and its results on the validation sequences."""


def run_of(checkpoint: Path) -> Path:
    """The directory of the run that wrote a checkpoint."""
    return checkpoint.resolve().parent.parent


@contextmanager
def open_run_directory(directory: Path) -> Iterator[None]:
    """Creates and locks the directory of a run, and cleans up after a run that was killed.

    Raises:
        UserError: the directory cannot be created or written, or another run is using it.
    """
    lock = FileLock(directory / ".lock")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
        write_atomically(directory / ".writable", "")
        (directory / ".writable").unlink()
    except Timeout:
        message = f"output_dir {directory} is in use by another run; choose another one or stop that run"
        raise UserError(message) from None
    except OSError as error:
        raise UserError(f"output_dir {directory} cannot be written: {error}") from error
    try:
        recover(directory, NAMES)
        recover_checkpoints(directory / CHECKPOINTS)
        yield
    finally:
        lock.release()


def find_start(directory: Path, resume: str) -> Path | None:
    """The checkpoint that a run in `directory` starts from; None for a new run. Changes no files.

    `resume` is `auto`, `never`, or the path of a checkpoint or of a run.

    Raises:
        CheckpointError: `resume` is the path of an incomplete or damaged checkpoint.
        UserError: there is no checkpoint at that path.
    """
    if resume == "never":
        return None
    if resume == "auto":
        return find_checkpoint(directory / CHECKPOINTS)
    path = Path(resume)
    if (path / MANIFEST).exists() or path.name.startswith("step-"):
        read_checkpoint(path)
        return path
    checkpoint = find_checkpoint(path / CHECKPOINTS)
    if checkpoint is None:
        raise UserError(
            f"resume is {resume!r}; it should be auto, never, or the path of a checkpoint (step-N) or of a run's "
            "directory with one"
        )
    return checkpoint


def move_aside(directory: Path, checkpoint: Path | None) -> None:
    """Moves files to `earlier-N` that do not belong to the run that starts from `checkpoint`.

    If the run resumes in its own directory, these are the checkpoints after `checkpoint`: they are damaged, or the
    run will write others. Otherwise these are all files of an earlier run, if it had written a checkpoint or a model.
    """
    checkpoints = numbered_checkpoints(directory / CHECKPOINTS)
    if checkpoint is not None and run_of(checkpoint) == directory.resolve():
        set_aside(directory, [path for path in checkpoints if step_of(path) > step_of(checkpoint)])
    elif checkpoints or (directory / FINAL).exists():
        set_aside(directory, [directory / name for name in NAMES if (directory / name).exists()])


def set_aside(directory: Path, paths: list[Path]) -> None:
    """Moves files of `directory` to a new `earlier-N` in it, and prints which."""
    if not paths:
        return
    aside = next(path for n in itertools.count(1) if not (path := directory / f"earlier-{n}").exists())
    for path in paths:
        target = aside / path.relative_to(directory)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    print(f"moved files of an earlier run in {directory} to {aside}: {', '.join(path.name for path in paths)}")


def check_disk(directory: Path, parameters: int, keep: int) -> None:
    """Checks that there is space for the checkpoints of a model and for the model itself.

    A checkpoint holds each parameter and its two moments in float32. Up to `keep` + 1 checkpoints exist at a time;
    those in `directory` already count among them.

    Raises:
        UserError: there is too little space.
    """
    existing = len(numbered_checkpoints(directory / CHECKPOINTS))
    needed = 4 * parameters * (3 * (1 + max(0, keep - existing)) + 1)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(
            f"output_dir {directory} has {free / 1e9:.2f} GB free; {needed / 1e9:.2f} GB are needed for {keep} "
            "checkpoints (train.keep_checkpoints), one more while it is written, and the model"
        )
