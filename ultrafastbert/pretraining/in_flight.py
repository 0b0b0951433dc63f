"""Results of training steps, read while the next step runs, so that the host does not stall the GPU.

The host queues a step on the GPU long before the GPU runs it. If it read the loss at once, it would wait for the step,
and the GPU would then wait for the host to queue the next one. Results are therefore copied asynchronously and read
one step later; only where something depends on them (a checkpoint, an evaluation, the end) does the host wait.
"""

import math
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

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


class StepsInFlight:
    """A queue of steps that the device runs, or has run; `read` leaves the results of the last `max_unread` unread."""

    def __init__(self, max_unread: int):
        self.max_unread, self._last_end = max_unread, 0.0
        # What is known of a step, its start, and its values, in the host's memory once the event has happened.
        self._queue: deque[tuple[dict[str, Any], float, torch.Tensor, torch.cuda.Event | None]] = deque()

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
        known = {"position": position, "lr": lr, "sequences": sequences}
        self._queue.append((known, start, values, copied))

    def read(self, everything: bool = False) -> Iterator[StepResult]:
        """Waits for the oldest steps, or for `everything`, and yields their results."""
        while len(self._queue) > (0 if everything else self.max_unread):
            known, start, values, copied = self._queue.popleft()
            if copied is not None:
                copied.synchronize()
            loss, norm = values.tolist()
            # The device begins a step after the one before, or when the host queues it, whichever is later.
            begin, self._last_end = max(start, self._last_end), time.monotonic()
            yield StepResult(**known, loss=loss, gradient_norm=norm, seconds=self._last_end - begin)
