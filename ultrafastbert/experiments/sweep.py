"""Makes the runs that are missing, several at a time, and keeps each in a file of its own.

Notable:
- a run is finished once its file is there, and files appear whole, so a sweep that was killed goes on with the rest;
- a file says what its result depends on: results of other settings are refused, never mixed;
- a run computes on one thread and from its own seed, so results do not depend on how many processes there are.
"""

import json
import multiprocessing
import os
import pickle
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from ultrafastbert.experiments.images import Images
from ultrafastbert.experiments.plan import Run
from ultrafastbert.runs.interrupts import Interrupt
from ultrafastbert.utils.errors import Interrupted, UserError
from ultrafastbert.utils.files import write_atomically
from ultrafastbert.utils.hardware import device_name
from ultrafastbert.utils.settings import flatten


def make_runs(runs: list[Run], images: Images, output: Path, workers: int, device: str) -> list[dict]:
    """Makes those of `runs` that have no result yet.

    Args:
        runs: of one experiment.
        images: on which they are trained.
        output: directory of the comparison.
        workers: processes at a time; with one, it is this process.
        device: `cpu` or `cuda`.

    Returns:
        The results of all `runs`, in their order: what `Run.make` tells, `settings`, `seconds` and `environment`.

    Raises:
        UserError: a file that is not the result of these settings, or a process that died.
        Interrupted: SIGINT, SIGTERM or SIGHUP; finished runs are kept.
    """
    fingerprint = images.fingerprint
    planned = [(run, _settings(run, images.name, fingerprint, device), output / run.path) for run in runs]
    jobs = [(run, settings, path, device) for run, settings, path in planned if read_result(path, settings) is None]
    with (
        Interrupt() as interrupt,
        tqdm(total=len(runs), initial=len(runs) - len(jobs), desc=runs[0].experiment) as bar,
    ):
        make = _make_here if workers == 1 else _make_in_processes
        for run, outcome in make(jobs, images, workers, lambda: _check(interrupt, bar, output)):
            bar.update()
            if "diverged" in outcome:
                bar.write(f"{run} diverged: {outcome['diverged']}")
    return [read_result(path, settings) for _, settings, path in planned]


def read_result(path: Path, settings: dict) -> dict | None:
    """The result in a file, None if there is no file.

    Raises:
        UserError: the file holds something else, or the result of other settings.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        before = flatten(result["settings"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not the result of a run: {error!r}; remove it to make that run again") from None
    now = flatten(settings)
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if changed:
        what = "; ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in changed)
        raise UserError(f"{path} is the result of other settings: {what}. Choose another output_dir")
    return result


def write_result(path: Path, result: dict) -> None:
    """Writes a result, which holds its `settings`, so that it is there whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(result))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from error


def environment(device: str) -> dict[str, str]:
    """What a result was made on and with."""
    return {"device": device_name(device), "torch": torch.__version__, "python": platform.python_version()}


def _settings(run: Run, dataset: str, fingerprint: str, device: str) -> dict:
    return {"dataset": dataset, "dataset_fingerprint": fingerprint, "device": device} | run.settings


def _check(interrupt: Interrupt, bar: tqdm, output: Path) -> None:
    if interrupt.signal is not None:
        raise Interrupted(
            f"stopped by signal {interrupt.signal}; {bar.n} of {bar.total} runs of {bar.desc} are finished and kept in"
            f" {output / 'runs'}; the same command goes on with the others",
            interrupt.signal,
        )


def _make(run: Run, settings: dict, path: Path, device: str, images: Images, check=lambda: None) -> dict:
    start = time.perf_counter()
    outcome = run.make(images, device, check)
    seconds = round(time.perf_counter() - start, 3)
    write_result(path, {"settings": settings, "seconds": seconds, "environment": environment(device)} | outcome)
    return outcome


def _make_here(jobs: list[tuple], images: Images, workers: int, check) -> Iterator[tuple[Run, dict]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for job in jobs:
            check()
            yield job[0], _make(*job, images, check)
    finally:
        torch.set_num_threads(threads)


# several processes


def _make_in_processes(jobs: list[tuple], images: Images, workers: int, check) -> Iterator[tuple[Run, dict]]:
    with tempfile.NamedTemporaryFile() as file:
        pickle.dump(images, file)  # handed over otherwise, they would keep this process waiting while others start
        file.flush()
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, _start_worker, (file.name,)) as pool:
            try:
                yield from _make_in_pool(pool, jobs, check)
            except BaseException as error:
                for process in multiprocessing.active_children():
                    process.terminate()
                if isinstance(error, BrokenProcessPool):
                    raise UserError(
                        "a process that trained died, perhaps for lack of memory; the same command goes on with the"
                        " runs that are missing, with fewer workers if need be"
                    ) from None
                raise


def _make_in_pool(pool: ProcessPoolExecutor, jobs: list[tuple], check) -> Iterator[tuple[Run, dict]]:
    with _ignored(signal.SIGINT):  # so do the processes that start here: Ctrl-C is this one's to handle
        pending = {pool.submit(_make_in_worker, *job): job[0] for job in jobs}
    while pending:
        check()
        for future in wait(pending, timeout=0.2, return_when=FIRST_COMPLETED).done:
            yield pending.pop(future), future.result()


@contextmanager
def _ignored(number: int) -> Iterator[None]:
    handler = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, handler)


def _start_worker(images: str) -> None:
    global _images
    _images = pickle.loads(Path(images).read_bytes())
    torch.set_num_threads(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _make_in_worker(run: Run, settings: dict, path: Path, device: str) -> dict:
    return _make(run, settings, path, device, _images)
