"""SIGINT, SIGTERM and SIGHUP as a request that a training loop can honour when its state is consistent."""

import signal


class Interrupt:
    """While entered, notes the first such signal in `signal`; a second one acts as it would have otherwise.

    Signals that are ignored, as SIGHUP is under nohup, stay so.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self):
        self.signal: int | None = None

    def __enter__(self):
        self._previous = {
            number: signal.signal(number, self._note)
            for number in self.SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(self, *exception):
        self._restore()

    def _note(self, number, frame):
        self.signal = number
        self._restore()

    def _restore(self):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
