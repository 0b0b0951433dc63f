"""What the host knows of training steps, and when.

A GPU is given its work long before it does it. A host that asks for a step's loss waits for the step, and then the GPU
waits for the host; so the numbers of a step are read while the next one runs, and only where something depends on
them (a checkpoint, the end) is it waited for.
"""

import math
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch


class Step(NamedTuple):
    """A step that has been made."""

    where: dict  # the run's place after it
    lr: float
    rows: int  # over all processes
    loss: float  # mean over the step's micro-batches, in nats
    gradient_norm: float  # before clipping
    seconds: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class _Launched(NamedTuple):
    where: dict
    lr: float
    rows: int
    start: float  # when the host began with it
    values: torch.Tensor  # loss and gradient norm, in the host's memory, once `arrival` has come
    arrival: torch.cuda.Event | None


class Steps:
    """Steps in the order in which the device was given them.

    Args:
        at_most: how many may remain unread.
    """

    def __init__(self, at_most: int):
        self.at_most, self._launched, self._last_arrival = at_most, deque(), 0.0

    def launched(self, where: dict, lr: float, rows: int, start: float, values: torch.Tensor) -> None:
        """Takes note of a step that the device has been given.

        Args:
            where, lr, rows: of `Step`.
            start: `time.monotonic()` when the host began with it.
            values: `(2,)` on the device: loss and gradient norm.
        """
        arrival = torch.cuda.Event() if values.is_cuda else None
        values = values.to("cpu", non_blocking=True)  # in the device's queue now, not behind the next step
        if arrival is not None:
            arrival.record()
        self._launched.append(_Launched(where, lr, rows, start, values, arrival))

    def read(self, everything: bool = False) -> Iterator[Step]:
        """The steps that were not read yet, but for the newest `at_most` unless `everything` is asked for."""
        while len(self._launched) > (0 if everything else self.at_most):
            where, lr, rows, start, values, arrival = self._launched.popleft()
            if arrival is not None:
                arrival.synchronize()
            loss, norm = values.tolist()
            now = time.monotonic()
            # A step begins when the one before it is done, or when the host begins with it, if that is later.
            seconds, self._last_arrival = now - max(start, self._last_arrival), now
            yield Step(where, lr, rows, loss, norm, seconds)


def summarise(steps: list[Step], sequence_length: int) -> dict:
    """The metrics of consecutive steps: means, and what the last one was made with."""
    finite = [step.loss for step in steps if step.is_finite]
    last = steps[-1]
    return {
        "loss": sum(finite) / len(finite) if finite else None,
        "gradient_norm": last.gradient_norm if last.is_finite else None,
        "lr": last.lr,
        "batch_rows": last.rows,
        "tokens_per_second": sequence_length * sum(step.rows for step in steps) / sum(step.seconds for step in steps),
    }
