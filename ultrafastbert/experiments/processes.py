"""Runs the measurements of an experiment that have no result yet, in this process or in several.

Each process takes one measurement after another from the same `ResultStore`. This process shows the progress, handles
signals, and stops the others when one of them dies; if it dies itself, they stop too.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from ultrafastbert.experiments.plan import LayerTraining
from ultrafastbert.experiments.speed import LayerTiming
from ultrafastbert.runs.environment import environment
from ultrafastbert.runs.interrupts import Interrupt
from ultrafastbert.runs.results import ResultStore
from ultrafastbert.utils.errors import Interrupted, UserError
from ultrafastbert.utils.progress import progress_bar

Measurement = LayerTraining | LayerTiming
Plan = Sequence[Measurement]


def run_measurements(plan: Plan, images: Any, directory: Path, workers: int, device: str) -> list[dict]:
    """Runs those of `plan` that have no result in `directory`.

    Args:
        plan: the measurements of one experiment.
        images: the `Images` that networks are trained on; None for timings.
        directory: of the results; its name is the experiment's.
        workers: number of processes; with one, this process runs the measurements.
        device: `cpu` or `cuda`.

    Returns:
        All results in the order of `plan`: what `measure` returns, `settings`, `seconds`, `environment`.

    Raises:
        UserError: a result that is damaged or of other settings, or a process that died.
        Interrupted: SIGINT, SIGTERM or SIGHUP; finished measurements are kept.
    """
    store = ResultStore(directory)
    settings = {measurement.file: measurement.settings(images, device) for measurement in plan}
    missing = [measurement for measurement in plan if not store.is_finished(measurement)]
    for measurement in plan:
        if measurement not in missing:
            store.read(measurement.file, settings[measurement.file])
    with progress_bar(len(plan), directory.name, initial=len(plan) - len(missing)) as bar:

        def show_progress() -> None:
            for measurement in [measurement for measurement in missing if store.is_finished(measurement)]:
                missing.remove(measurement)
                bar.update()
                result = store.read(measurement.file)
                if "diverged" in result:
                    bar.write(f"{result['run']} diverged: {result['diverged']}")

        if workers == 1:
            _work(store, plan, images, device, show_progress)
        else:
            _work_in_processes((store, plan, images, device), min(workers, len(missing)), show_progress)
    return [store.read(file, settings[file]) for file in settings]


def _work(store: ResultStore, plan: Plan, images: Any, device: str, after_each: Callable[[], None]) -> None:
    """Runs measurements until all of `plan` are finished, here or in other processes."""

    def run(measurement: Measurement, check: Callable[[], None]) -> None:
        threads, start = torch.get_num_threads(), time.perf_counter()
        torch.set_num_threads(measurement.threads)
        try:
            outcome = measurement.measure(images, device, check)
        finally:
            torch.set_num_threads(threads)
        result = {
            "run": f"{store.directory.name}, {measurement.file.removesuffix('.json')}",
            "settings": measurement.settings(images, device),
            "seconds": round(time.perf_counter() - start, 3),
            "environment": environment(device),
        }
        store.write(measurement.file, result | outcome)
        after_each()

    store.finish(lambda: plan, run)


def _work_in_processes(work: tuple, workers: int, show_progress: Callable[[], None]) -> None:
    """Starts processes that each call `_work(*work)`, and waits for them."""
    store, plan, *_ = work
    with Interrupt() as interrupt:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe(duplex=False) for _ in range(workers)]
        processes = [context.Process(target=_receive_and_work, args=(receiver,)) for receiver, _ in pipes]
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the processes inherit it: Ctrl-C is handled here
        for process in processes:
            process.start()
        signal.signal(signal.SIGINT, handler)
        for receiver, sender in pipes:  # in threads, because sending waits until the process has started
            receiver.close()
            threading.Thread(target=_send, args=(sender, work), daemon=True).start()
        try:
            running = processes
            while running and interrupt.signal is None:
                running = [process for process in processes if process.is_alive()]
                if any(process.exitcode for process in processes):
                    raise UserError(
                        "a process that trained has stopped; if no message above says why, memory may be short. The"
                        " same command resumes with the trainings that are missing; --workers sets the number of"
                        " processes"
                    )
                show_progress()
                wait([process.sentinel for process in running], timeout=0.2)
        finally:
            for process in processes:
                process.kill()
                process.join()
        store.raise_if_interrupted(interrupt, lambda: plan)


def _send(sender: Connection, work: tuple) -> None:
    with contextlib.suppress(OSError):  # the process has died, which the main thread notices
        sender.send(work)


def _receive_and_work(receiver: Connection) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        _work(*receiver.recv(), after_each=lambda: None)
    except Interrupted as error:  # the main process prints the message
        sys.exit(error.exit_code)
    except UserError as error:
        sys.exit(f"error: {error}")


def _exit_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(1)
