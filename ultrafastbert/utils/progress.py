"""Progress of long operations: a bar on a terminal, a line every 20 seconds in a file or a pipe."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 20

Item = TypeVar("Item")


def progress_bar(
    total: float | None,
    description: str,
    unit: str = "it",
    *,
    initial: float = 0,
    scale: bool = False,
    leave: bool = True,
    enabled: bool = True,
    bar_format: str | None = None,
) -> "tqdm | ProgressLines":
    """A progress bar on stderr; where stderr is not a terminal, an object that prints lines instead.

    Both have `n`, `total`, `desc`, `update`, `set_description_str`, `write` and `close`, and are context managers.

    Args:
        total: number of units; None if it is not known.
        description: shown in front.
        unit: what is counted.
        initial: units that are finished already.
        scale: show large numbers as 1.2k or 3.4M.
        leave: leave the bar on the terminal when it is closed.
        enabled: False shows nothing.
        bar_format: the layout, as tqdm defines it.
    """
    if enabled and not sys.stderr.isatty():
        return ProgressLines(total, description, unit, initial, scale, bar_format)
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        initial=initial,  # pyright: ignore[reportArgumentType]  # tqdm counts floats too
        unit_scale=scale,
        leave=leave,
        disable=not enabled,
        bar_format=bar_format,
        dynamic_ncols=True,
    )


def track(items: Sequence[Item], description: str, unit: str = "it", leave: bool = True) -> Iterator[Item]:
    """Iterates over `items` with a progress bar."""
    with progress_bar(len(items), description, unit, leave=leave) as bar:
        for item in items:
            yield item
            bar.update()


class ProgressLines:
    """The part of tqdm's interface that this project uses, printing a line to stderr at most every 20 seconds."""

    def __init__(
        self,
        total: float | None,
        description: str,
        unit: str = "it",
        initial: float = 0,
        scale: bool = False,
        bar_format: str | None = None,
    ):
        self.total, self.desc, self.n, self.initial = total, description, initial, initial
        self.unit, self.scale, self.bar_format = unit, scale, bar_format and bar_format.replace("{bar}|", "")
        self.started = self.printed = time.monotonic()

    def update(self, n: float | None = 1) -> None:
        """Counts `n` more units."""
        self.n += n or 0
        now = time.monotonic()
        if now - self.printed >= SECONDS_BETWEEN_LINES:
            self.printed = now
            with contextlib.suppress(OSError):  # the reader of the pipe is gone
                print(self._line(now - self.started), file=sys.stderr, flush=True)

    def _line(self, elapsed: float) -> str:
        return tqdm.format_meter(
            self.n,
            self.total,  # pyright: ignore[reportArgumentType]  # None if it is not known
            elapsed,
            ncols=None if self.bar_format else 0,  # 0: without a bar
            prefix=self.desc,
            unit=self.unit,
            unit_scale=self.scale,
            bar_format=self.bar_format,
            initial=self.initial,  # pyright: ignore[reportArgumentType]
        )

    def set_description_str(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """Changes the description, which the next line shows; `refresh` has no effect."""
        self.desc = desc or ""

    def write(self, s: str) -> None:
        """Prints a message to stdout."""
        print(s, flush=True)

    def clear(self) -> None:
        """Does nothing: there is no bar to remove."""

    def close(self) -> None:
        """Does nothing: what was printed stays."""

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def duration(seconds: float) -> str:
    """A time for people to read: 5s, 3m 20s, 1h 05m."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {seconds:02}s" if minutes else f"{seconds}s"
