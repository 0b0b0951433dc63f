"""Output of a run: progress on stderr, messages on stdout, `metrics.jsonl`, experiment trackers.

`metrics.jsonl` has a line for each event. A training line has `loss`, the mean over the steps since the last line; a
validation line has `validation_loss`. Every line has `step`, `budget_fraction`, `tokens` and `seconds`.
"""

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ultrafastbert.utils.files import write_atomically
from ultrafastbert.utils.progress import progress_bar

EARLIER_NAMES: dict[str, str] = {"share": "budget_fraction", "batch_rows": "batch_size"}
"""Fields that version 0.1 wrote, and their current names."""


def read_metrics(path: Path, broken: list[int] | None = None) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, without a last line that a killed run wrote in part; [] if there is no file.

    Args:
        path: of the file.
        broken: gets the numbers of other lines that are not metrics. They are skipped.
    """
    if not path.exists():
        return []
    *lines, _part = path.read_bytes().split(b"\n")
    metrics = []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            if type(values["step"]) is not int:
                raise ValueError("step is not a number")
            metrics.append({EARLIER_NAMES.get(name, name): value for name, value in values.items()})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            if broken is not None:
                broken.append(number)
    return metrics


class Reporter:
    """Reports the events of a run, in the main process only.

    A full disk or a closed terminal does not stop the run: lines that could not be written to `metrics.jsonl` are
    written with the next one.

    Args:
        path: of `metrics.jsonl`. Lines of steps after `step` are removed, because the run repeats these steps.
        step: at which the run starts or resumes.
        accelerator: its trackers get the metrics too.
    """

    def __init__(self, path: Path, step: int, accelerator: Accelerator):
        self.path, self.accelerator, self.active = path, accelerator, accelerator.is_main_process
        self.lines: list[str] = []
        self.is_written = True  # whether the file holds exactly `lines`
        if self.active:
            broken: list[int] = []
            self.lines = [json.dumps(line) + "\n" for line in read_metrics(path, broken) if line["step"] <= step]
            if broken:
                kept = next(
                    p for n in itertools.count(1) if not (p := path.with_name(f"{path.name}.damaged-{n}")).exists()
                )
                path.rename(kept)
                lines = ", ".join(map(str, broken[:5])) + ", ..." * (len(broken) > 5)
                print(f"warning: {path} is damaged in line {lines}; the damaged file is kept as {kept}", flush=True)
            write_atomically(path, "".join(self.lines))
        layout = "{percentage:3.0f}% of the budget |{bar}| {desc}"
        self.bar = progress_bar(1.0, "", enabled=self.active, bar_format=layout)

    def show_progress(self, budget_fraction: float, text: str) -> None:
        """Shows the fraction of the budget that is spent, and `text` beside it."""
        if self.active:
            self.bar.set_description_str(text, refresh=False)
            self.bar.update(budget_fraction - self.bar.n)

    def metrics(self, values: dict[str, Any]) -> None:
        """Appends a line to `metrics.jsonl` and passes its numbers to the trackers; lists have one for each layer."""
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for name, value in values.items():
            if isinstance(value, list):
                numbers |= {f"{name}/layer_{layer}": number for layer, number in enumerate(value)}
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
            if was_written:  # warn once, not at every line
                lost = f"warning: {self.path} could not be written"
                self.say(f"{lost}: {error}; its lines are kept for the next attempt")

    def say(self, text: str) -> None:
        """Prints a message above the bar."""
        if self.active:
            self.bar.clear()
            with contextlib.suppress(OSError):  # the reader of stdout is gone
                print(text, flush=True)

    def close(self) -> None:
        """Closes the bar and writes the lines that could not be written before."""
        self.bar.close()
        if not self.is_written:
            self._write()
