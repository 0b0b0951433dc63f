"""Plots and a table of pretraining runs, from their metrics."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultrafastbert.runs.directory import METRICS
from ultrafastbert.runs.reporter import read_metrics
from ultrafastbert.utils.figures import new_figure, save_figure
from ultrafastbert.utils.tables import markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Metrics = dict[str, list[dict[str, Any]]]
"""The lines of `metrics.jsonl` of each run, by the name of the run in the legend."""


def plot_runs(runs: dict[str, Path], directory: Path, unigram_entropy: float | None = None) -> list[Path]:
    """Draws `loss.png`, `accuracy.png`, `throughput.png` and, if there are trees, `leaves.png`; returns the files.

    There is no `accuracy.png` before the first validation.

    Args:
        runs: the directory of each run, by its name in the legend.
        directory: of the plots; created if it does not exist.
        unigram_entropy: of the training tokens, drawn as a line: the loss of a model that has learnt only how often
            each token occurs. [nats]

    Raises:
        ValueError: a run has no metrics.
    """
    metrics = _read(runs)
    files = [_draw_loss(metrics, directory / "loss.png", unigram_entropy)]
    if any("validation_accuracy" in line for lines in metrics.values() for line in lines):
        files.append(_draw_accuracy(metrics, directory / "accuracy.png"))
    files.append(_draw_throughput(metrics, directory / "throughput.png"))
    if any("leaf_entropy" in line for lines in metrics.values() for line in lines):
        files.append(_draw_leaves(metrics, directory / "leaves.png"))
    return files


def tabulate_runs(runs: dict[str, Path], rows: int = 12) -> str:
    """A Markdown table of the validations of each run, by its name; of more than `rows`, that many evenly spaced.

    Raises:
        ValueError: a run has no metrics.
    """
    table = []
    for name, lines in _read(runs).items():
        validations = [line for line in lines if "validation_loss" in line]
        last = len(validations) - 1
        chosen = sorted({round(last * (row + 1) / rows) for row in range(rows)}) if last >= rows else range(last + 1)
        for line in (validations[index] for index in chosen):
            loss, accuracy = f"{line['validation_loss']:.3f}", f"{line['validation_accuracy']:.1%}"
            table.append([name, f"{line['seconds'] / 60:.1f}", f"{line['tokens'] / 1e6:.1f}", loss, accuracy])
    return markdown_table(["run", "minutes", "millions of tokens", "validation loss, nats", "accuracy"], table)


def _read(runs: dict[str, Path]) -> Metrics:
    metrics = {name: read_metrics(run / METRICS) for name, run in runs.items()}
    for name, run in runs.items():
        if not metrics[name]:
            raise ValueError(f"{run / METRICS} has no metrics; it should be the file of a pretraining run")
    return metrics


def _draw_loss(metrics: Metrics, path: Path, unigram_entropy: float | None) -> Path:
    figure, axes = _new_plot("masked-token loss (nats)")
    for index, (name, lines) in enumerate(metrics.items()):
        color = f"C{index}"
        axes.plot(*_series(lines, "loss"), color=color, alpha=0.35, linewidth=1, label=f"{name}, training")
        validation = _series(lines, "validation_loss")
        axes.plot(*validation, color=color, marker="o", markersize=3, label=f"{name}, validation")
    if unigram_entropy is not None:
        axes.axhline(unigram_entropy, color="grey", linestyle="--", label="unigram entropy of the data")
    return _save(figure, axes, path)


def _draw_accuracy(metrics: Metrics, path: Path) -> Path:
    figure, axes = _new_plot("masked tokens predicted correctly, validation (%)")
    axes.set_xlabel("minutes of training")
    for name, lines in metrics.items():
        lines = [line for line in lines if "validation_accuracy" in line]
        minutes, accuracies = ([line[key] for line in lines] for key in ("seconds", "validation_accuracy"))
        axes.plot(
            [value / 60 for value in minutes],
            [100 * value for value in accuracies],
            marker="o",
            markersize=3,
            label=name,
        )
    axes.set_ylim(bottom=0)
    return _save(figure, axes, path)


def _draw_throughput(metrics: Metrics, path: Path) -> Path:
    figure, axes = _new_plot("tokens per second")
    for name, lines in metrics.items():
        axes.plot(*_series(lines, "tokens_per_second"), linewidth=1, label=name)
    axes.set_ylim(bottom=0)
    return _save(figure, axes, path)


def _draw_leaves(metrics: Metrics, path: Path) -> Path:
    figure, axes = _new_plot("entropy of leaf use (1: even, 0: collapsed)")
    for index, (name, lines) in enumerate(metrics.items()):
        tokens, entropies = _series([line for line in lines if line.get("leaf_entropy")], "leaf_entropy")
        layers = list(zip(*entropies, strict=True))
        for layer, values in enumerate(layers):
            alpha = 0.3 + 0.7 * layer / max(1, len(layers) - 1)  # deeper layers are darker
            label = f"{name}, layers 0 (light) and up" if layer == 0 else None
            axes.plot(tokens, values, color=f"C{index}", alpha=alpha, marker="o", markersize=3, label=label)
    axes.set_ylim(0, 1.02)
    return _save(figure, axes, path)


def _series(lines: list[dict[str, Any]], name: str) -> tuple[Sequence[float], Sequence[Any]]:
    """Millions of tokens and the values of `name`, of the lines that have one."""
    lines = [line for line in lines if line.get(name) is not None]
    return [line["tokens"] / 1e6 for line in lines], [line[name] for line in lines]


def _new_plot(ylabel: str) -> "tuple[Figure, Axes]":
    figure, panels = new_figure(7, 4.2)
    panels[0, 0].set(xlabel="millions of tokens", ylabel=ylabel)
    return figure, panels[0, 0]


def _save(figure: "Figure", axes: "Axes", path: Path) -> Path:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    return save_figure(figure, path)
