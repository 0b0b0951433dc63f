"""One `glue.json` beside another: a picture and a table of the tasks that both have.

Notable:
- medians, bars and averages are computed from the values of the seeds, so a figure never disagrees with its dots;
- averages are over the tasks that both results have, so they may differ from those in the files;
- what besides the model differs between the two is said, for then it is not the model alone that is compared.
"""

import json
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from ultrafastbert.finetuning.report import FORMAT, PAPER_TITLES
from ultrafastbert.utils.errors import UserError

EXPECTED = "it should be the glue.json that fine-tuning writes, or the directory that holds it"
COLORS = ("C0", "C1")
MARKERS = ("o", "s")

OF_THE_MODEL = ("model", "random_init")
"""Settings that say which model was fine-tuned, not how."""


@dataclass(frozen=True)
class Result:
    """What is compared of a `glue.json`.

    Attributes:
        path: the file.
        name: what it is called.
        settings: of the fine-tuning.
        metrics: by title of a development set (`MNLI-m`), the metric that stands for it.
        values: by title, that metric's value for every seed, in its natural range.
        rows: by title, the fingerprint of the task's rows.
    """

    path: Path
    name: str
    settings: dict
    metrics: dict[str, str]
    values: dict[str, list[float]]
    rows: dict[str, str]


@dataclass(frozen=True)
class Comparison:
    """Two results and what they have in common.

    Attributes:
        results: A and B.
        names: what they are called; different.
        titles: of the development sets that both have with the same metric, in A's order.
        averages: by label, the titles that it is over, at least two: those of the papers, so without WNLI.
    """

    results: tuple[Result, Result]
    names: tuple[str, str]
    titles: list[str]
    averages: dict[str, list[str]]

    def medians(self, title: str) -> tuple[float, float]:
        """Of A and B over their seeds, times 100."""
        return tuple(100 * median(result.values[title]) for result in self.results)

    def average(self, label: str) -> tuple[float, float]:
        """Of A and B, the mean of the medians, times 100."""
        return tuple(map(mean, zip(*map(self.medians, self.averages[label]), strict=True)))


def read_result(path: Path) -> Result:
    """Reads a `glue.json`, or the one in a directory.

    Raises:
        UserError: if there is none, it has another format, or a score has no values or one that is not finite.
    """
    path = path / "glue.json" if path.is_dir() else path
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
        metrics = {title: str(score["metric"]) for title, score in content["scores"].items()}
        values = {title: [float(value) for value in score["values"]] for title, score in content["scores"].items()}
        rows = {title: str(score["data_fingerprint"]) for title, score in content["scores"].items()}
        result = Result(path, str(content["name"]), dict(content["settings"]), metrics, values, rows)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): {EXPECTED}") from error
    for title, seeds in values.items():
        if not seeds or not all(map(math.isfinite, seeds)):
            raise UserError(
                f"{path}: the values of {title} are {seeds}; they should be a finite number for every seed"
            )
    return result


def compare(a: Result, b: Result) -> Comparison:
    """What `a` and its baseline `b` have in common.

    Raises:
        UserError: if they are the same file or have no task in common.
    """
    if a.path.resolve() == b.path.resolve():
        raise UserError(f"{a.path} and {b.path} are the same file; a result should be compared with another one")
    titles = [title for title in a.metrics if a.metrics[title] == b.metrics.get(title)]
    if not titles:
        raise UserError(
            f"{a.path} ({_listed(a)}) and {b.path} ({_listed(b)}) have no task in common; "
            "they should have one, with the same metric"
        )
    names = (a.name, b.name)
    if a.name == b.name:
        places = [result.path.resolve().parent.name for result in (a, b)]
        places = places if places[0] != places[1] else [result.path for result in (a, b)]
        names = tuple(f"{a.name} ({place})" for place in places)
    of = [title for title in PAPER_TITLES if title in titles]
    without_cola = [title for title in of if title != "CoLA"]
    averages = {"average": of, "average without CoLA": without_cola if without_cola != of else []}
    return Comparison((a, b), names, titles, {label: of for label, of in averages.items() if len(of) > 1})


def _listed(result):
    return ", ".join(f"{title} by {metric}" for title, metric in result.metrics.items()) or "no scores"


def render_comparison(comparison: Comparison) -> str:
    """A table in Markdown of the medians and what lies between minimum and maximum, and what a reader should know."""
    lines = [
        f"- {letter}: {name}, `{result.path}`"
        for letter, name, result in zip("AB", comparison.names, comparison.results, strict=True)
    ]
    lines += ["", "| task | metric | seeds | A: median [min, max] | B: median [min, max] | A - B |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for title in comparison.titles:
        values = [result.values[title] for result in comparison.results]
        lines.append(
            _row(
                title,
                comparison.results[0].metrics[title],
                " and ".join(dict.fromkeys(str(len(seeds)) for seeds in values)),
                *(f"{100 * median(s):z.1f} [{100 * min(s):z.1f}, {100 * max(s):z.1f}]" for s in values),
                _difference(comparison.medians(title)),
            )
        )
    for label, titles in comparison.averages.items():
        average = comparison.average(label)
        lines.append(_row(f"{label}, of {len(titles)}", "", "", *(f"{x:z.1f}" for x in average), _difference(average)))
    lines += ["", "All figures are times 100; differences are those of figures before rounding."]
    if comparison.averages:
        lines[-1] += (
            " Averages are means of the medians over GLUE's development sets that both have,"
            " without WNLI, as the papers do."
        )
    return "\n".join([*lines, *_not_compared(comparison), *_what_differs(comparison)])


def _row(*cells):
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _difference(values):
    return f"{values[0] - values[1]:+z.1f}"


def _not_compared(comparison):
    a, b = comparison.results
    lines = []
    for letter, result, other in (("A", a, b), ("B", b, a)):
        alone = [title for title in result.metrics if title not in other.metrics]
        if alone:
            lines.append(f"Only {letter} has {', '.join(alone)}.")
    for title, metric in a.metrics.items():
        if title in b.metrics and title not in comparison.titles:
            lines.append(f"{title} is left out: its metric is {metric} in A and {b.metrics[title]} in B.")
    return ["", *lines] if lines else []


def _what_differs(comparison):
    a, b = (result.settings for result in comparison.results)
    names = [name for name in a | b if name not in OF_THE_MODEL]
    names = [name for name in names if name not in a or name not in b or a[name] != b[name]]
    rows = [title for title in comparison.titles if len({result.rows[title] for result in comparison.results}) > 1]
    if not names and not rows:
        return []
    lines = ["", "It is not the model alone that is compared:", ""]
    lines += [f"- the rows of {', '.join(rows)} are not the same in A and B"] if rows else []
    for name in names:
        shown = [json.dumps(settings[name]) if name in settings else "not given" for settings in (a, b)]
        lines.append(f"- {name}: {shown[0]} in A, {shown[1]} in B")
    return lines


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Draws the tasks from top to bottom, A above B: medians, bars from minimum to maximum, a faint dot for each seed.

    Args:
        comparison: from `compare`.
        path: of the PNG; its directory is made if it is not there.

    Raises:
        UserError: if the name does not end in `.png`, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    if path.suffix.lower() != ".png":
        raise UserError(f"output is {path}; it should end in .png")
    rows = len(comparison.titles) + len(comparison.averages)
    figure = Figure(figsize=(8, 1.7 + 0.52 * rows), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for row, title in enumerate(comparison.titles):
        for side, result in enumerate(comparison.results):
            _draw_seeds(axes, row + (side - 0.5) * 0.36, [100 * value for value in result.values[title]], side)
        _label_difference(axes, row, comparison.medians(title))
    for row, label in enumerate(comparison.averages, len(comparison.titles)):
        for side, value in enumerate(comparison.average(label)):
            _draw_marker(axes, value, row + (side - 0.5) * 0.36, side)
        _label_difference(axes, row, comparison.average(label))
    _label_rows(axes, comparison)
    _label_axes(axes, comparison)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise UserError(f"output {path} cannot be written: {error.strerror}") from error


def _draw_seeds(axes, y, values, side):
    color = COLORS[side]
    axes.plot([min(values), max(values)], [y, y], color=color, linewidth=1.5)
    axes.plot(values, [y] * len(values), "o", color=color, alpha=0.35, markersize=7, markeredgewidth=0)
    _draw_marker(axes, median(values), y, side)


def _draw_marker(axes, x, y, side):
    return axes.plot(x, y, MARKERS[side], color=COLORS[side], markersize=7, markeredgecolor="white")[0]


def _label_difference(axes, row, values):
    axes.text(1.02, row, _difference(values), transform=axes.get_yaxis_transform(), va="center")


def _label_rows(axes, comparison):
    metrics = comparison.results[0].metrics
    labels = [f"{title}\n{metrics[title].replace('_', ' ').capitalize()}" for title in comparison.titles]
    labels += [f"{label}\nof {len(titles)}" for label, titles in comparison.averages.items()]
    axes.set_yticks(range(len(labels)), map(_plain, labels))
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    for row in range(1, len(labels)):
        axes.axhline(row - 0.5, color="0.9", linewidth=0.8, zorder=0)
    if comparison.averages:
        axes.axhspan(len(comparison.titles) - 0.5, len(labels) - 0.5, color="0.94", linewidth=0, zorder=-1)


def _label_axes(axes, comparison):
    axes.set_xlabel(
        "score times 100, in the metric named beside the task\n"
        "marker: median over seeds, mean of medians in averages\n"
        "bar: minimum to maximum, faint dots: seeds"
    )
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.text(1.02, 1, "A − B", transform=axes.transAxes, va="bottom")
    handles = [_draw_marker(axes, [], [], side) for side in range(2)]
    names = [
        _plain(textwrap.fill(f"{letter}: {name}", 90)) for letter, name in zip("AB", comparison.names, strict=True)
    ]
    axes.figure.legend(handles, names, loc="outside upper left", frameon=False)


def _plain(text):
    """`text` without dollar signs that would start a formula."""
    return text.replace("$", r"\$")
