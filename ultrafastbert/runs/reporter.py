"""What a person sees of a run: the progress bar, `metrics.jsonl`, experiment trackers, the summary.

`metrics.jsonl` has a line for each event. Training lines have `loss`, the mean over the steps since the line before;
validation lines have `validation_loss`. Every line has `step`, `share` (of the budget), `tokens` and `seconds`.
"""

import contextlib
import json
import sys
import time
from pathlib import Path

from tqdm import tqdm

from ultrafastbert.utils.files import write_atomically

SECONDS_BETWEEN_LINES = 20


def read_metrics(path: Path) -> list[dict]:
    """The lines of a `metrics.jsonl`; a last line that a killed run left half-written is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Reporter:
    """Reports the events of a run; in processes other than the main one it does nothing.

    A disk that is full or a terminal that is gone does not stop a run: what could not be written to `metrics.jsonl`
    is written with the next line.

    Args:
        path: of `metrics.jsonl`. Lines of steps after `step` are removed: they will be made again.
        step: the step at which the run goes on, 0 at its start.
        accelerator: whose trackers get the metrics too.
    """

    def __init__(self, path: Path, step: int, accelerator):
        self.path, self.accelerator, self.active = path, accelerator, accelerator.is_main_process
        if self.active:
            self.lines = [json.dumps(line) + "\n" for line in read_metrics(path) if line["step"] <= step]
            write_atomically(path, "".join(self.lines))
            self.is_written = True  # whether the file holds exactly these lines
            self.bar = tqdm(
                total=1.0,
                disable=not sys.stderr.isatty(),
                bar_format="{percentage:3.0f}% of the budget |{bar}| {desc}",
            )
            self.next_line = time.monotonic()

    def progress(self, share: float, text: str) -> None:
        """Moves the bar to `share` of the budget, with `text` beside it; without a terminal, prints now and then."""
        if not self.active:
            return
        self.bar.n = share
        self.bar.set_description_str(text, refresh=False)
        self.bar.refresh()
        if self.bar.disable and time.monotonic() >= self.next_line:
            self.say(f"{share:4.0%} of the budget | {text}")
            self.next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def metrics(self, values: dict) -> None:
        """Appends a line to `metrics.jsonl` and tells the trackers."""
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for name in ("leaves_used", "leaf_entropy"):
            numbers |= {f"{name}/layer_{i}": value for i, value in enumerate(values.get(name, []))}
        self.accelerator.log(numbers, step=values["step"])
        if self.active:
            self.lines.append(json.dumps(values) + "\n")
            self._write()

    def _write(self) -> None:
        was_written = self.is_written
        try:
            if self.is_written:
                self.is_written = False
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(self.lines[-1])
            else:
                write_atomically(self.path, "".join(self.lines))
            self.is_written = True
        except OSError as error:
            if was_written:  # said once, not with every line
                self.say(f"warning: {self.path} could not be written: {error}; its lines are kept for the next time")

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self.active:
            self.bar.clear()
            with contextlib.suppress(OSError):  # nobody is listening any more
                print(text, flush=True)

    def close(self) -> None:
        if self.active:
            self.bar.close()
            if not self.is_written:
                self._write()


def duration(seconds: float) -> str:
    """A time a person reads: 5s, 3m 20s, 1h 05m."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {seconds:02}s" if minutes else f"{seconds}s"
