"""Times of calls in comparison: contenders take turns, so that other load on the machine affects all of them alike."""

import time
from collections.abc import Callable

import torch


def take_turns(
    calls: dict[str, Callable[[], object]], seconds: float, burst: int = 1, device: str = "cpu"
) -> dict[str, list[float]]:
    """Times of each contender's calls, in seconds.

    A turn is a burst of calls. Its first call, which starts with another contender's weights in the cache, is not
    counted, and neither are two calls before all turns, in which a contender builds, compiles and allocates.

    On `cuda` a call is timed by a pair of events, and the host waits for them once per burst. The device's clock does
    not include the time after which the host notices the end. Since the host may run ahead, as in training, the cost
    of a launch counts only where the device has to wait for it.

    Args:
        calls: what is timed, by name.
        seconds: how long each contender is timed. Each gets at least three turns, and no further ones when its time
            is over.
        burst: least number of counted calls in a turn; of short calls there are more, for about 20 ms.
        device: where the calls run, `cpu` or `cuda`.
    """
    timed = _timed_on_gpu if torch.device(device).type == "cuda" else _timed
    bursts = {}
    for name, call in calls.items():
        call()
        bursts[name] = max(burst, min(1000, round(0.02 / timed(call, 1)[0])))
    times: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    turn = 0
    while due := [name for name in calls if turn < 3 or spent[name] < seconds]:
        turn += 1
        for name in due:
            calls[name]()
            counted = timed(calls[name], bursts[name])
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
