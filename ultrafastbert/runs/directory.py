"""A run's directory: found usable before any work is done, held by one run at a time, and where a run starts from."""

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

# what a run writes
NAMES = ["checkpoints", "final", "plots", "metrics.jsonl", "config.yaml"]


@contextmanager
def open_run_directory(directory: Path) -> Iterator[None]:
    """Makes the directory, tries to write there, and ends what a killed run was writing; while it is entered, no
    other run can enter it.

    Raises:
        UserError: the directory cannot be made or written, or another run is using it.
    """
    lock = FileLock(directory / ".lock")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
        write_atomically(directory / ".writable", "")
        (directory / ".writable").unlink()
    except Timeout:
        raise UserError(
            f"output_dir {directory} is in use by another run; choose another one or stop that run"
        ) from None
    except OSError as error:
        raise UserError(f"output_dir {directory} cannot be written: {error}") from error
    try:
        recover(directory, NAMES)
        recover_checkpoints(directory / "checkpoints")
        yield
    finally:
        lock.release()


def find_start(directory: Path, resume: str) -> Path | None:
    """The checkpoint that a run in `directory` starts from; None for a new run. Nothing is changed.

    Args:
        resume: `auto`, `never`, or the path of a checkpoint or of a run.

    Raises:
        CheckpointError: the checkpoint named is not complete.
        UserError: there is nothing at that path.
    """
    if resume == "never":
        return None
    if resume == "auto":
        return find_checkpoint(directory / "checkpoints")
    path = Path(resume)
    if (path / MANIFEST).exists() or path.name.startswith("step-"):
        read_checkpoint(path)
        return path
    checkpoint = find_checkpoint(path / "checkpoints")
    if checkpoint is None:
        raise UserError(
            f"resume is {resume!r}; it should be auto, never, or the path of a checkpoint (step-N) or of a run's "
            "directory with one"
        )
    return checkpoint


def move_aside(directory: Path, checkpoint: Path | None) -> None:
    """Moves to `earlier-N` whatever would come among the files of the run that starts from `checkpoint`.

    Of a run that goes on in its own directory, that is what is newer than the checkpoint: damaged checkpoints, or
    those of the way it now does not go. Otherwise it is all that an earlier run left, if that was more than a start.
    """
    checkpoints = numbered_checkpoints(directory / "checkpoints")
    if checkpoint is not None and checkpoint.resolve().parent.parent == directory.resolve():
        paths = [path for path in checkpoints if step_of(path) > step_of(checkpoint)]
    elif checkpoints or (directory / "final").exists():
        paths = [directory / name for name in NAMES if (directory / name).exists()]
    else:
        paths = []
    set_aside(directory, paths)


def set_aside(directory: Path, paths: list[Path]) -> None:
    """Moves these files of `directory` to a new `earlier-N` in it, and says so."""
    if not paths:
        return
    number = 1
    while (aside := directory / f"earlier-{number}").exists():
        number += 1
    for path in paths:
        target = aside / path.relative_to(directory)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    print(f"files of an earlier run in {directory} are now in {aside}: {', '.join(path.name for path in paths)}")


def check_disk(directory: Path, weights: int, keep: int) -> None:
    """Refuses to start where the checkpoints of a model of `weights` parameters will not fit.

    A checkpoint holds each weight and its two moments in float32. `keep` of them stay, one more is being written,
    and there is the final model; checkpoints that are there already count.

    Raises:
        UserError: too little space; the message says how much there is and how much is needed.
    """
    there = len(numbered_checkpoints(directory / "checkpoints"))
    needed = 4 * weights * (3 * (1 + max(0, keep - there)) + 1)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(
            f"output_dir {directory} has {free / 1e9:.2f} GB free; {needed / 1e9:.2f} GB are needed for {keep} "
            "checkpoints (train.keep_checkpoints), one more while it is written, and the model"
        )
