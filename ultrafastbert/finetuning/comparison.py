"""Comparison of two results of fine-tuning: a table and a figure of the tasks that both have.

Notable:
- medians, bars and averages are computed from the values of the seeds, so they always agree with the dots;
- averages are over the tasks that both results have, so they may differ from those in the files;
- the text names settings and data that differ, because then the comparison is not of the models alone.
"""

import json
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from ultrafastbert.finetuning.report import PAPER_TITLES
from ultrafastbert.finetuning.schema import FORMAT, RESULTS
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.figures import new_figure, save_figure
from ultrafastbert.utils.tables import markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

FIGURE = "compare_glue.png"
EXPECTED = f"it should be a {RESULTS} written by fine-tuning, or its directory"
LETTERS = ("A", "B")
COLORS = ("C0", "C1")
MARKERS = ("o", "s")

MODEL_SETTINGS = ("model", "random_init")
"""Settings that identify the model, and not how it was fine-tuned."""


@dataclass(frozen=True)
class TaskScores:
    """The scores of a development set: its metric, the value for every seed, and the fingerprint of the examples."""

    metric: str
    values: list[float]
    data_fingerprint: str


@dataclass(frozen=True)
class FinetuningResult:
    """The part of a `glue.json` that is compared: the model's name, settings, and scores by title (`MNLI-m`)."""

    path: Path
    name: str
    settings: dict[str, Any]
    scores: dict[str, TaskScores]


@dataclass(frozen=True)
class Comparison:
    """Two results and what they have in common.

    Attributes:
        results: A and B.
        names: of A and B in table and figure; different.
        titles: of the development sets that both have with the same metric, in A's order.
        averages: by label, at least two titles to average over; without WNLI, as in the papers.
    """

    results: tuple[FinetuningResult, FinetuningResult]
    names: tuple[str, str]
    titles: list[str]
    averages: dict[str, list[str]]

    def medians(self, title: str) -> tuple[float, float]:
        """The medians of A and B over their seeds, times 100."""
        a, b = (100 * median(result.scores[title].values) for result in self.results)
        return a, b

    def average(self, label: str) -> tuple[float, float]:
        """The means of A's and B's medians, times 100."""
        a, b = zip(*map(self.medians, self.averages[label]), strict=True)
        return mean(a), mean(b)


def read_result(path: Path) -> FinetuningResult:
    """Reads a `glue.json`, or the one in a directory.

    Raises:
        UserError: there is none, it has another format, or the values of a score are missing or not finite.
    """
    path = path / RESULTS if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {EXPECTED}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): {EXPECTED}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise UserError(f"{path} has format {json.dumps(found)}, not {FORMAT}: {EXPECTED}")
    try:
        scores = {
            title: TaskScores(str(score["metric"]), [*map(float, score["values"])], str(score["data_fingerprint"]))
            for title, score in content["scores"].items()
        }
        result = FinetuningResult(path, str(content["name"]), dict(content["settings"]), scores)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): {EXPECTED}") from error
    for title, score in scores.items():
        if not score.values or not all(map(math.isfinite, score.values)):
            raise UserError(
                f"{path}: the values of {title} are {score.values}; they should be a finite number for each seed"
            )
    return result


def compare_results(a: FinetuningResult, b: FinetuningResult) -> Comparison:
    """Compares `a` with the baseline `b`.

    Raises:
        UserError: they are the same file or have no task in common.
    """
    if a.path.resolve() == b.path.resolve():
        raise UserError(f"{a.path} and {b.path} are the same file; they should be two results")
    titles = [t for t, score in a.scores.items() if t in b.scores and score.metric == b.scores[t].metric]
    if not titles:
        raise UserError(
            f"{a.path} ({_scores(a)}) and {b.path} ({_scores(b)}) have no task in common;"
            " they should have at least one, with the same metric"
        )
    names = (a.name, b.name)
    if a.name == b.name:
        places = [result.path.resolve().parent.name for result in (a, b)]
        places = places if places[0] != places[1] else [a.path, b.path]
        names = (f"{a.name} ({places[0]})", f"{a.name} ({places[1]})")
    of = [title for title in PAPER_TITLES if title in titles]
    without_cola = [title for title in of if title != "CoLA"]
    averages = {"average": of, "average without CoLA": without_cola if without_cola != of else []}
    return Comparison((a, b), names, titles, {label: of for label, of in averages.items() if len(of) > 1})


def _scores(result: FinetuningResult) -> str:
    return ", ".join(f"{title} by {score.metric}" for title, score in result.scores.items()) or "no scores"


def render_comparison(comparison: Comparison) -> str:
    """A Markdown table of medians, minima and maxima, and remarks on everything that is not comparable."""
    header = ("task", "metric", "seeds", "A: median [min, max]", "B: median [min, max]", "A - B")
    rows = []
    for title in comparison.titles:
        values = [result.scores[title].values for result in comparison.results]
        seeds = " and ".join(dict.fromkeys(str(len(seeds)) for seeds in values))
        cells = [f"{100 * median(s):z.1f} [{100 * min(s):z.1f}, {100 * max(s):z.1f}]" for s in values]
        metric = comparison.results[0].scores[title].metric
        rows.append((title, metric, seeds, *cells, _difference(comparison.medians(title))))
    for label, titles in comparison.averages.items():
        average = comparison.average(label)
        rows.append((f"{label}, of {len(titles)}", "", "", *(f"{x:z.1f}" for x in average), _difference(average)))
    text = "All scores are times 100; differences are of scores before rounding."
    if comparison.averages:
        text += " Averages are means of the medians over GLUE's development sets that both have, without WNLI, as in"
        text += " the papers."
    named = zip(LETTERS, comparison.names, comparison.results, strict=True)
    lines = [f"- {letter}: {name}, `{result.path}`" for letter, name, result in named]
    lines += ["", markdown_table(header, rows), "", text]
    return "\n".join([*lines, *_not_compared(comparison), *_what_differs(comparison)])


def _difference(values: tuple[float, float]) -> str:
    return f"{values[0] - values[1]:+z.1f}"


def _not_compared(comparison: Comparison) -> list[str]:
    a, b = comparison.results
    lines = []
    for letter, result, other in (("A", a, b), ("B", b, a)):
        alone = [title for title in result.scores if title not in other.scores]
        if alone:
            lines.append(f"Only {letter} has {', '.join(alone)}.")
    for title in a.scores:
        if title in b.scores and title not in comparison.titles:
            metrics = f"{a.scores[title].metric} in A and {b.scores[title].metric} in B"
            lines.append(f"{title} is not compared: its metric is {metrics}.")
    return ["", *lines] if lines else []


def _what_differs(comparison: Comparison) -> list[str]:
    a, b = comparison.results
    lines = []
    changed = [t for t in comparison.titles if a.scores[t].data_fingerprint != b.scores[t].data_fingerprint]
    if changed:
        lines.append(f"- the examples of {', '.join(changed)} are not the same in A and B")
    for name in a.settings | b.settings:
        shown = [json.dumps(r.settings[name]) if name in r.settings else "not given" for r in (a, b)]
        if name not in MODEL_SETTINGS and shown[0] != shown[1]:
            lines.append(f"- {name}: {shown[0]} in A, {shown[1]} in B")
    return ["", "A and B differ not only in the model:", "", *lines] if lines else []


def draw_comparison(comparison: Comparison, directory: Path) -> Path:
    """Draws the tasks from top to bottom, A above B: medians, bars from minimum to maximum, a faint dot for each seed.

    Args:
        comparison: from `compare_results`.
        directory: of the PNG file; created if it does not exist.

    Returns:
        The path of the file.

    Raises:
        UserError: the file cannot be written.
    """
    count = len(comparison.titles) + len(comparison.averages)
    figure, panels = new_figure(8, 1.7 + 0.52 * count)
    axes = panels[0, 0]
    for y, title in enumerate(comparison.titles):
        for side, result in enumerate(comparison.results):
            _draw_seeds(axes, y + (side - 0.5) * 0.36, [100 * value for value in result.scores[title].values], side)
        _label_difference(axes, y, comparison.medians(title))
    for y, label in enumerate(comparison.averages, len(comparison.titles)):
        for side, value in enumerate(comparison.average(label)):
            _draw_marker(axes, [value], y + (side - 0.5) * 0.36, side)
        _label_difference(axes, y, comparison.average(label))
    _label_tasks(axes, comparison)
    _label_axes(axes, comparison)
    try:
        return save_figure(figure, directory / FIGURE)
    except OSError as error:
        raise UserError(f"{directory / FIGURE} cannot be written: {error.strerror}") from error


def _draw_seeds(axes: "Axes", y: float, values: list[float], side: int) -> None:
    color = COLORS[side]
    axes.plot([min(values), max(values)], [y, y], color=color, linewidth=1.5)
    axes.plot(values, [y] * len(values), "o", color=color, alpha=0.35, markersize=7, markeredgewidth=0)
    _draw_marker(axes, [median(values)], y, side)


def _draw_marker(axes: "Axes", x: list[float], y: float, side: int) -> "Line2D":
    return axes.plot(x, [y] * len(x), MARKERS[side], color=COLORS[side], markersize=7, markeredgecolor="white")[0]


def _label_difference(axes: "Axes", y: float, values: tuple[float, float]) -> None:
    axes.text(1.02, y, _difference(values), transform=axes.get_yaxis_transform(), va="center")


def _label_tasks(axes: "Axes", comparison: Comparison) -> None:
    scores = comparison.results[0].scores
    labels = [f"{title}\n{scores[title].metric.replace('_', ' ').capitalize()}" for title in comparison.titles]
    labels += [f"{label}\nof {len(titles)}" for label, titles in comparison.averages.items()]
    axes.set_yticks(range(len(labels)), [_plain(label) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    for y in range(1, len(labels)):
        axes.axhline(y - 0.5, color="0.9", linewidth=0.8, zorder=0)
    if comparison.averages:
        axes.axhspan(len(comparison.titles) - 0.5, len(labels) - 0.5, color="0.94", linewidth=0, zorder=-1)


def _label_axes(axes: "Axes", comparison: Comparison) -> None:
    axes.set_xlabel(
        "score times 100, in the metric below the task's name\n"
        "marker: median over seeds; in averages, mean of the medians\n"
        "bar: minimum to maximum; faint dots: seeds"
    )
    axes.grid(axis="y", visible=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.text(1.02, 1, "A − B", transform=axes.transAxes, va="bottom")
    handles = [_draw_marker(axes, [], 0, side) for side in range(2)]
    named = zip(LETTERS, comparison.names, strict=True)
    labels = [_plain(textwrap.fill(f"{letter}: {name}", 90)) for letter, name in named]
    axes.figure.legend(handles, labels, loc="outside upper left", frameon=False)


def _plain(text: str) -> str:
    """`text` without dollar signs that would start a formula."""
    return text.replace("$", r"\$")
