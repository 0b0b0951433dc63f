"""Progress of long operations: a bar on a terminal, a line every 20 seconds in a file or a pipe."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 20

Item = TypeVar("Item")


def progress_bar(
    total: float | None,
    description: str,
    unit: str = "it",
    *,
    leave: bool = True,
    enabled: bool = True,
    **options: Any,
) -> "tqdm | ProgressLines":
    """A progress bar on stderr; where stderr is not a terminal, an object that prints lines instead.

    Both have `n`, `total`, `desc`, `update`, `set_description_str`, `write` and `close`, and are context managers.

    Args:
        total: number of units; None if it is not known.
        description: shown in front.
        unit: what is counted.
        leave: leave the bar on the terminal when it is closed.
        enabled: False shows nothing.
        options: `initial`, `unit_scale` and `bar_format`, as tqdm defines them.
    """
    if enabled and not sys.stderr.isatty():
        return ProgressLines(total, description, unit=unit, **options)
    options |= {"unit": unit, "leave": leave, "disable": not enabled, "dynamic_ncols": True}
    return tqdm(total=total, desc=description, miniters=0, **options)  # tqdm's miniters does not suit fractions of 1


def track(items: Sequence[Item], description: str, unit: str = "it", leave: bool = True) -> Iterator[Item]:
    """Iterates over `items` with a progress bar."""
    with progress_bar(len(items), description, unit, leave=leave) as bar:
        for item in items:
            yield item
            bar.update()


class ProgressLines:
    """The part of tqdm's interface that this project uses, printing a line to stderr at most every 20 seconds."""

    def __init__(self, total: float | None, description: str, *, bar_format: str | None = None, **options: Any):
        self.total, self.desc, self.n = total, description, options.get("initial", 0)
        self.format: dict[str, Any] = options | {"bar_format": bar_format and bar_format.replace("{bar}|", "")}
        self.format["ncols"] = None if bar_format else 0  # 0: without a bar
        self.started = self.printed = time.monotonic()

    def update(self, n: float | None = 1) -> None:
        """Counts `n` more units."""
        self.n += n or 0
        now = time.monotonic()
        if now - self.printed >= SECONDS_BETWEEN_LINES:
            self.printed = now
            with contextlib.suppress(OSError):  # the reader of the pipe is gone
                values: dict[str, Any] = {"n": self.n, "total": self.total, "elapsed": now - self.started}
                line = tqdm.format_meter(**values, **self.format, prefix=self.desc)
                print(line, file=sys.stderr, flush=True)

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
