"""Results of independent trainings, which any number of processes resume where they were stopped.

A training is finished once its result file exists. Files appear whole, so a training that is killed is run again from
its start and the finished ones are kept. Each process takes the next training that is neither finished nor locked by
another process. A result contains the settings that produced it, and results of other settings are refused.
"""

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from filelock import FileLock, Timeout

from ultrafastbert.runs.interrupts import Interrupt
from ultrafastbert.runs.settings import changed_settings, refuse_changes
from ultrafastbert.utils.errors import Interrupted, UserError
from ultrafastbert.utils.files import CHECKSUM, beside, is_intact, seal, write_atomically

POLL_SECONDS = 0.5
"""How long a process that finds all missing trainings taken waits until it looks again."""


class Training(Protocol):
    """A training with one result."""

    @property
    def file(self) -> str:
        """The path of the result, relative to the directory of results."""
        ...


AnyTraining = TypeVar("AnyTraining", bound=Training)
Check = Callable[[], None]
"""Raises `Interrupted` after a signal."""


class ResultStore:
    """A directory of results.

    Args:
        directory: where the files are; it is created with the first result.
        resume: what resumes the work, for the message after a signal.
        remedy: a sentence that says what to do about results of other settings.
    """

    def __init__(self, directory: Path, resume: str = "the same command", remedy: str = "Choose another output_dir."):
        self.directory, self.resume, self.remedy = directory, resume, remedy

    def is_finished(self, training: Training) -> bool:
        """Whether the result exists."""
        return (self.directory / training.file).exists()

    def read(self, file: str | Path, settings: dict[str, Any] | None = None) -> dict[str, Any]:
        """The result in a file, compared to the settings unless they are None.

        `settings` are all that the result depends on, nested, of JSON types. The file has them in `settings`, or next
        to it, as GLUE's results have `data_fingerprint`.

        Raises:
            UserError: the file is missing or damaged, or contains the result of other settings.
        """
        path = self.directory / file
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            if not is_intact(result):
                raise ValueError("it has changed since it was written")
            result.pop(CHECKSUM, None)
            before = {name: result[name] for name in settings or () if name in result} | result["settings"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is not the result of a training: {error!r}; remove it to run that training again"
            ) from None
        if settings is not None:
            refuse_changes(str(path), changed_settings(before, settings), self.remedy)
        return result

    def write(self, file: str, result: dict[str, Any]) -> None:
        """Writes a result, which contains its `settings`; the file appears whole or not at all.

        Raises:
            UserError: the file cannot be written.
        """
        path = self.directory / file
        try:
            write_atomically(path, json.dumps(seal(json.loads(json.dumps(result))), indent=1))
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error}") from error

    def finish(self, plan: Callable[[], Sequence[AnyTraining]], train: Callable[[AnyTraining, Check], None]) -> None:
        """Runs trainings until all are finished, here or in other processes.

        Args:
            plan: returns all trainings that can run or have run, and is called again after each one: those that
                depend on the results of others join later.
            train: runs a training and writes its result. It calls its second argument at least once a step.

        Raises:
            Interrupted: SIGINT, SIGTERM or SIGHUP; finished trainings are kept.
            UserError: the directory cannot be written.
        """
        with Interrupt() as interrupt:
            check = partial(self.raise_if_interrupted, interrupt, plan)
            while missing := [training for training in plan() if not self.is_finished(training)]:
                check()
                if not any(self._train_unless_taken(training, train, check) for training in missing):
                    time.sleep(POLL_SECONDS)

    def raise_if_interrupted(self, interrupt: Interrupt, plan: Callable[[], Sequence[Training]]) -> None:
        """After a signal, raises `Interrupted` with the number of finished trainings and how to resume."""
        if interrupt.signal is not None:
            finished = list(map(self.is_finished, plan()))
            raise Interrupted(
                f"stopped by signal {interrupt.signal}; {sum(finished)} of {len(finished)} trainings are finished and"
                f" kept in {self.directory}; {self.resume} resumes with the others",
                interrupt.signal,
            )

    def _train_unless_taken(
        self, training: AnyTraining, train: Callable[[AnyTraining, Check], None], check: Check
    ) -> bool:
        """Runs a training, unless another process has taken it: then returns False."""
        path = self.directory / training.file
        lock = FileLock(beside(path, "lock"), blocking=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            return False
        except OSError as error:
            raise UserError(f"{path.parent} cannot be written: {error}") from error
        try:
            if not path.exists():  # another process may have finished it just now
                train(training, check)
        finally:
            lock.release()
        beside(path, "lock").unlink(missing_ok=True)  # not needed any more: the result exists
        return True
