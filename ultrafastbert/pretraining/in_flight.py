"""Results of training steps, read while the next step runs, so that the host does not stall the GPU.

The host queues a step on the GPU long before the GPU runs it. If it read the loss at once, it would wait for the step,
and the GPU would then wait for the host to queue the next one. Results are therefore copied asynchronously and read
one step later; only where something depends on them (a checkpoint, an evaluation, the end) does the host wait.
"""

import math
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch


class StepResult(NamedTuple):
    """The result of a training step.

    Attributes:
        position: of the run after the step, from `Progress.position`.
        lr: the learning rate.
        sequences: in the batch, over all processes.
        loss: mean over the micro-batches, in nats.
        gradient_norm: before clipping.
        seconds: that the step took.
    """

    position: dict[str, float]
    lr: float
    sequences: int
    loss: float
    gradient_norm: float
    seconds: float

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient norm are finite; otherwise the step was skipped."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class _Queued(NamedTuple):
    position: dict[str, float]
    lr: float
    sequences: int
    start: float
    values: torch.Tensor  # loss and gradient norm, in the host's memory once `copied` has happened
    copied: torch.cuda.Event | None


class StepsInFlight:
    """A queue of steps that the device runs, or has run, and whose results are not read yet.

    Args:
        max_unread: number of steps whose results `read` leaves unread.
    """

    def __init__(self, max_unread: int):
        self.max_unread = max_unread
        self._queue: deque[_Queued] = deque()
        self._last_end = 0.0

    def add(self, position: dict[str, float], lr: float, sequences: int, start: float, values: torch.Tensor) -> None:
        """Adds a step that has just been queued on the device.

        Args:
            position: of the run after the step.
            lr: the learning rate.
            sequences: in the batch, over all processes.
            start: `time.monotonic()` when the host began to queue the step.
            values: `(2,)` on the device: loss and gradient norm.
        """
        copied = torch.cuda.Event() if values.is_cuda else None
        values = values.to("cpu", non_blocking=True)  # queued now, before the next step
        if copied is not None:
            copied.record()
        self._queue.append(_Queued(position, lr, sequences, start, values, copied))

    def read(self, everything: bool = False) -> Iterator[StepResult]:
        """Waits for the oldest steps and yields their results.

        Args:
            everything: whether to read all steps, or to leave the newest `max_unread` unread.
        """
        while len(self._queue) > (0 if everything else self.max_unread):
            step = self._queue.popleft()
            if step.copied is not None:
                step.copied.synchronize()
            loss, norm = step.values.tolist()
            # The device begins a step after the one before, or when the host queues it, whichever is later.
            begin, self._last_end = max(step.start, self._last_end), time.monotonic()
            yield StepResult(step.position, step.lr, step.sequences, loss, norm, self._last_end - begin)
