"""Signals that stop a run (SIGINT, SIGTERM, SIGHUP), deferred until its state can be saved."""

import signal
from types import FrameType
from typing import Self


class Interrupt:
    """A context that records the first signal in `signal` instead of stopping; a second one has its usual effect.

    Signals that are ignored, such as SIGHUP under nohup, stay ignored.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self):
        self.signal: int | None = None

    def __enter__(self) -> Self:
        self._previous = {
            number: signal.signal(number, self._record)
            for number in self.SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.__exit__()
