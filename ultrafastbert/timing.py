"""Times of calls that are to be compared: contenders take turns, so that a noisy machine hits all of them alike."""

import platform
import time
from collections.abc import Callable
from pathlib import Path

TURNS = 3
"""The least that everyone gets."""


def take_turns(calls: dict[str, Callable[[], object]], seconds: float, burst: int = 1) -> dict[str, list[float]]:
    """Times of each contender's calls, in seconds.

    A turn is a short burst of calls. The first, which finds another contender's weights in cache, is not counted, and
    neither are two calls before all turns, in which a contender builds, compiles and allocates.

    Args:
        calls: what is timed, by name.
        seconds: how long each contender is timed; those that are done leave the others to it. Everyone gets at least
            three turns.
        burst: least number of counted calls of a turn; where they are short there are more, for about 20 ms.
    """
    bursts = {}
    for name, call in calls.items():
        call()
        bursts[name] = max(burst, min(1000, round(0.02 / _timed(call))))
    times = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    turn = 0
    while turn < TURNS or min(spent.values()) < seconds:
        turn += 1
        for name, call in calls.items():
            if turn > TURNS and spent[name] >= seconds:
                continue
            call()
            counted = [_timed(call) for _ in range(bursts[name])]
            times[name] += counted
            spent[name] += sum(counted)
    return times


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
