"""Times of calls that are to be compared: contenders take turns, so that a noisy machine hits all of them alike."""

import time
from collections.abc import Callable

import torch

TURNS = 3
"""The least that everyone gets."""


def take_turns(
    calls: dict[str, Callable[[], object]], seconds: float, burst: int = 1, device: str = "cpu"
) -> dict[str, list[float]]:
    """Times of each contender's calls, in seconds.

    A turn is a short burst of calls. The first, which finds another contender's weights in cache, is not counted, and
    neither are two calls before all turns, in which a contender builds, compiles and allocates.

    On `cuda` a call is timed by a pair of events around it, and the host waits for them once a burst. The device's own
    clock leaves out how long the host takes to notice, and because the host may run ahead, as it does in training,
    what it takes to launch a call counts only where the device has to wait for it.

    Args:
        calls: what is timed, by name.
        seconds: how long each contender is timed; those that are done leave the others to it. Everyone gets at least
            three turns.
        burst: least number of counted calls of a turn; where they are short there are more, for about 20 ms.
        device: where the calls run, `cpu` or `cuda`.
    """
    timed = _timed_on_gpu if torch.device(device).type == "cuda" else _timed
    bursts = {}
    for name, call in calls.items():
        call()
        bursts[name] = max(burst, min(1000, round(0.02 / timed(call, 1)[0])))
    times = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    turn = 0
    while turn < TURNS or min(spent.values()) < seconds:
        turn += 1
        for name, call in calls.items():
            if turn > TURNS and spent[name] >= seconds:
                continue
            call()
            counted = timed(call, bursts[name])
            times[name] += counted
            spent[name] += sum(counted)
    return times


def _timed(call: Callable[[], object], count: int) -> list[float]:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def _timed_on_gpu(call: Callable[[], object], count: int) -> list[float]:
    pairs = []
    for _ in range(count):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in pairs]
