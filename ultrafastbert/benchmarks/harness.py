"""The harness of the benchmarks: contenders are checked, timed in turns and recorded, case by case.

A benchmark consists of cases, such as a dtype and a number of tokens, and of contenders in each of them. Contenders
whose outputs differ from a reference are not timed, and neither are those that do not fit into memory.

Each complete case is saved in `NAME.partial.json`. After an interruption the same command resumes with the remaining
cases. At the end that file is replaced by `NAME.md`, `NAME.png` and, last, `NAME.json`.
"""

import importlib.util
import itertools
import json
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

from ultrafastbert.runs.environment import environment
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.figures import new_figure, save_figure
from ultrafastbert.utils.files import write_atomically
from ultrafastbert.utils.progress import track
from ultrafastbert.utils.tables import markdown_table
from ultrafastbert.utils.timing import take_turns
from ultrafastbert.utils.validation import Rule

Case = dict[str, Any]
Result = dict[str, Any]
Layer = Callable[[torch.Tensor], torch.Tensor]

OUT_OF_MEMORY, TOO_LARGE = "out of memory", "too large a computation"
TOLERANCES = {"float32": 1e-3, "float64": 1e-3}
"""The largest relative error by dtype; for others 0.08, less than the error of ignoring the mask of padding."""
POSITIVE_INTEGERS = Rule(
    lambda values: len(values) > 0 and all(type(value) is int and value > 0 for value in values),
    "a list of integers, at least 1",
)
LISTED_ONCE = Rule(lambda values: 0 < len(values) == len(set(values)), "at least one, each once")


class Ready(NamedTuple):
    """A contender that is set up: the call to time, and two functions about it."""

    call: Callable[[], Any]
    error: Callable[[Any], float]  # of an output of `call`, relative to a reference
    facts: Callable[[float], dict[str, Any]] = lambda median: {}  # more to record, given the median time in seconds


class Contender(NamedTuple):
    """Something to time, under a name and with a function that builds it."""

    name: str
    set_up: Callable[[], Ready]
    dtype: str = "float32"  # that it computes in; it determines the tolerance
    needs: Sequence[str] = ()  # packages that have to be installed
    skip: str = ""  # why it is not timed in this case, if it is not


class Benchmark:
    """The record of a benchmark.

    Args:
        name: of the benchmark and its files.
        arguments: a dataclass of options, `seconds` and `output_dir` among them.
        packages: whose versions are recorded if they are installed.
        device: where contenders run.

    Attributes:
        results: those so far, of all cases.
        record: the content of NAME.json. Entries of `results` and `not_timed` have the fields of their case and
            `name`. Results have the `median`, `least` and `p95` of the times of a call in seconds, the number of
            `calls`, `error`, and the contender's facts.

    Raises:
        UserError: output_dir cannot be created, or there is no GPU.
    """

    def __init__(self, name: str, arguments: Any, packages: Sequence[str] = (), device: str = "cpu"):
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("device is cuda; this PyTorch finds no GPU")
        self.name, self.device, self.seconds = name, device, arguments.seconds
        self.directory = Path(arguments.output_dir)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output_dir {self.directory} cannot be created: {error}") from error
        options = {key: value for key, value in asdict(arguments).items() if key != "output_dir"}
        installed = metadata.packages_distributions()
        versions = environment(device, *(package for package in packages if package in installed))
        settings = json.loads(json.dumps({"arguments": options, "environment": versions}))  # tuples become lists
        command = shlex.join(["ultrafastbert", *sys.argv[1:]])
        self.record: dict[str, Any] = {"command": command, **settings, "cases": [], "results": [], "not_timed": []}
        self.partial = self._path("partial.json")
        if self.partial.exists():
            earlier = json.loads(self.partial.read_text(encoding="utf-8"))
            if settings.items() <= earlier.items():
                self.record = earlier
                print(f"resuming after {len(earlier['cases'])} cases, which are in {self.partial}", file=sys.stderr)
            else:
                print(f"{self.partial} has other settings or versions and will be replaced", file=sys.stderr)
        self.results: list[Result] = self.record["results"]

    def _path(self, suffix: str) -> Path:
        return self.directory / f"{self.name}.{suffix}"

    def select(self, **case: Any) -> dict[str, Result]:
        """The results of a case, by contender."""
        return {r["name"]: r for r in self.results if all(r.get(key) == value for key, value in case.items())}

    def remaining(self, cases: Sequence[Case]) -> Iterator[Case]:
        """Iterates over the cases that are not measured yet, with a progress bar."""
        yield from track([case for case in cases if case not in self.record["cases"]], self.name, "case")

    def measure(
        self, case: Case, contenders: Sequence[Contender], required: str = "", burst: int = 1, must_fit: bool = False
    ) -> None:
        """Checks and times the contenders of a case, and saves the results.

        Args:
            case: what distinguishes it from others; JSON can hold it.
            contenders: are set up in this order.
            required: name of a contender without which the others are not worth timing.
            burst: see `take_turns`.
            must_fit: raise torch.OutOfMemoryError, and save nothing, instead of skipping a contender.

        Raises:
            UserError: `required` cannot be timed.
        """
        ready: dict[str, Ready] = {}
        errors: dict[str, float] = {}
        reasons: dict[str, str] = {}
        times: dict[str, list[float]] = {}
        skippable = () if must_fit else torch.OutOfMemoryError
        for contender in contenders:
            name, reason = contender.name, contender.skip or missing(contender.needs)
            try:
                if not reason:
                    ready[name] = contender.set_up()
                    errors[name] = ready[name].error(ready[name].call())
                    if not errors[name] <= TOLERANCES.get(contender.dtype, 0.08):
                        reason = f"its outputs are wrong by {errors[name]:.2g}"
            except skippable:
                reason = OUT_OF_MEMORY
            if reason:
                reasons[name] = reason
                ready.pop(name, None)
                self._report(case, name, reason, required)
        try:
            if ready:
                times = take_turns({name: r.call for name, r in ready.items()}, self.seconds, burst, self.device)
        except skippable:
            reasons |= dict.fromkeys(ready, OUT_OF_MEMORY)
        for name, values in times.items():
            median, p95 = statistics.median(values), statistics.quantiles(values, n=20, method="inclusive")[-1]
            result = {"name": name, "median": median, "least": min(values), "p95": p95, "calls": len(values)}
            self.results.append(case | result | {"error": errors[name]} | ready[name].facts(median))
        self.record["not_timed"] += [case | {"name": name, "reason": reason} for name, reason in reasons.items()]
        self.record["cases"].append(case)
        write_atomically(self.partial, json.dumps(self.record, indent=1))

    def _report(self, case: Case, name: str, reason: str, required: str) -> None:
        known = any(entry["name"] == name and entry["reason"] == reason for entry in self.record["not_timed"])
        if reason == TOO_LARGE or known:
            return
        if name == required:
            raise UserError(f"{name}, which the others are compared with, cannot be timed: {reason}")
        where = ", ".join(f"{key} {value}" for key, value in case.items())
        print(f"{name} is not timed ({where}): {reason}", file=sys.stderr)
        if reason == OUT_OF_MEMORY and self.device == "cuda":
            torch.cuda.empty_cache()

    def described(self) -> str:
        """The hardware and the versions, for the introduction of a table."""
        device, *versions = self.record["environment"].items()
        return f"{device[1]}; {', '.join(' '.join(item) for item in versions)}."

    def finish(self, tables: Sequence[str], figure: Figure | None = None) -> None:
        """Writes and prints the tables, followed by what was not timed and why; writes figure and results."""
        names: dict[str, list[str]] = {}
        for entry in self.record["not_timed"]:
            names.setdefault(entry["reason"], []).append(entry["name"])
        skipped = [f"Not timed ({reason}): {', '.join(dict.fromkeys(group))}." for reason, group in names.items()]
        text = "\n\n".join([*tables, *skipped]) + "\n"
        write_atomically(self._path("md"), text)
        if figure is not None:
            save_figure(figure, self._path("png"))
        write_atomically(self._path("json"), json.dumps(self.record, indent=1))  # last: it marks completion
        self.partial.unlink(missing_ok=True)
        print(f"{text}\nwritten: {', '.join(str(path) for path in sorted(self.directory.glob(f'{self.name}.*')))}")


def missing(packages: Sequence[str]) -> str:
    """Which of the packages are not installed, as a message; empty if all are."""
    names = [package for package in packages if importlib.util.find_spec(package) is None]
    return f"not installed: {', '.join(names)}; pip install -e '.[bench]' installs it" if names else ""


def layer_call(
    layer: Layer, x: torch.Tensor, grad: torch.Tensor | None = None, weights: Sequence[torch.Tensor] = ()
) -> Callable[[], torch.Tensor]:
    """A call of a layer: in inference mode, or with a backward pass if the gradient of its outputs is given.

    It returns the outputs, or the gradient of `x`; a backward pass also computes the gradients of `weights`.
    """

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            return layer(x)

    return forward if grad is None else lambda: torch.autograd.grad(layer(x), [x, *weights], grad)[0]


def typical_error(output: torch.Tensor, expected: torch.Tensor, ignored: float = 0.25) -> float:
    """The largest error of a token's vector relative to the mean norm, except for a fraction of largest errors.

    That fraction is `ignored`: tokens within rounding of a decision boundary may take another path than the reference.
    Shapes: `(tokens, width)`.
    """
    errors = (output.float() - expected).norm(dim=-1) / expected.norm(dim=-1).mean()
    return errors.sort().values[len(errors) - 1 - int(ignored * len(errors))].item()


def results_table(
    corner: str,
    columns: dict[str, dict[str, Result]],
    cell: Callable[[Result], str],
    baseline: str = "",
    names: Iterable[str] = (),
) -> str:
    """A table of results, with how many times faster their medians are than the baseline's in brackets.

    Args:
        corner: header of the first column.
        columns: results by contender, by the header of their column.
        cell: the text of a result.
        baseline: a contender; without one there are no brackets.
        names: contenders, in the order of the lines; by default all.
    """

    def text(name: str, results: dict[str, Result]) -> str:
        if name not in results:
            return "–"
        ratio = f" ({results[baseline]['median'] / results[name]['median']:.3g}x)" if baseline in results else ""
        return cell(results[name]) + ratio

    names = names or dict.fromkeys(itertools.chain(*columns.values()))
    return markdown_table([corner, *columns], [[name, *(text(name, c) for c in columns.values())] for name in names])


def draw_bars(panels: dict[str, dict[str, float]], columns: int, label: str) -> Figure:
    """A figure of horizontal bars: panels by title, row by row, each with values by name."""
    names, rows = list(dict.fromkeys(itertools.chain(*panels.values()))), len(panels) // columns
    figure, grid = new_figure(2 + 2.8 * columns, 0.5 + rows * (0.8 + 0.3 * len(names)), rows, columns)
    for axes, (title, values) in zip(grid.flat, panels.items(), strict=True):
        bars = axes.barh(names, [values.get(name, 0) for name in names])
        axes.bar_label(bars, [digits(values[name]) if name in values else "" for name in names], padding=3)
        axes.set_title(title, fontsize=10)
        axes.margins(x=0.2)
        axes.grid(False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.invert_yaxis()
    for axes in grid[:, 1:].flat:
        axes.set_yticklabels([])
    figure.supxlabel(label, fontsize=10)
    return figure


def digits(value: float) -> str:
    """A number, not negative, with three digits or all those before the point."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def count_threads(number: int) -> str:
    """`1 thread`, `2 threads`."""
    return f"{number} thread{'s' * (number > 1)}"
