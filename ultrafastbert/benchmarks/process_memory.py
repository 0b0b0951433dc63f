"""The memory of a new process, on Linux."""

import multiprocessing
import re
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
    before = _sizes().get("VmRSS")
    kept = function(*arguments)
    sizes = _sizes()
    del kept
    return {"before": before, "peak": sizes.get("VmHWM"), "held": sizes.get("VmRSS")}


def _sizes() -> dict[str, int]:
    """What Linux reports for this process, in bytes; ru_maxrss would include the process that started it."""
    status = Path("/proc/self/status")
    lines = re.findall(r"(Vm\w+):\s*(\d+) kB", status.read_text(encoding="utf-8")) if status.exists() else []
    return {name: 1024 * int(size) for name, size in lines}
