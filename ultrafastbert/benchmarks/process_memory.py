"""The memory of a new process, on Linux."""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from ultrafastbert.utils.errors import UserError


def process_memory(function: Callable[..., object], *arguments: Any) -> dict[str, int | None]:
    """The resident memory of a new process that calls `function(*arguments)`.

    Returns:
        bytes before the call (`before`), the highest (`peak`), and with the returned value (`held`).

    Raises:
        UserError: the process was killed.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, function, arguments).result()
        except BrokenProcessPool:
            raise UserError(f"the process that loaded {arguments[0]} was killed, perhaps for lack of memory") from None


def _measure(function: Callable[..., object], arguments: tuple[Any, ...]) -> dict[str, int | None]:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    before = _status("VmRSS")
    kept = function(*arguments)
    sizes = {"before": before, "peak": _status("VmHWM"), "held": _status("VmRSS")}
    del kept
    return sizes


def _status(key: str) -> int | None:
    """A size that Linux reports for this process; ru_maxrss would include the process that started it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{key}:"):
                return 1024 * int(line.split()[1])
    return None
