"""Summaries of encoders as pictures: one encoder level by level, or several, such as the checkpoints of a run."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ultrafastbert.inspection.summary_text import MEASURES, label
from ultrafastbert.utils.figures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNDECIDED = math.log(2)
"""The largest entropy of a decision. [nats]"""


def draw_summary(summary: dict, path: Path) -> None:
    """Draws one encoder: maps of its levels, how full its leaves are, and how hard the decisions of its nodes are."""
    layers = summary["layers"]
    levels = 1 + max(layer["depth"] for layer in layers)
    figure, panels = new_figure(14, 6.4 + 0.56 * len(layers), rows=2, columns=3)
    scales = {"used": 1, "evenness": 1, "decision_entropy": UNDECIDED, "near_zero": None}
    for axes, (name, scale) in zip(panels[:, :2].flat, scales.items(), strict=True):
        _draw_map(axes, layers, name, levels, scale)
    _draw_leaves(panels[0, 2], layers)
    _draw_nodes(panels[1, 2], layers)
    title = f"{label(summary)}: {summary['tokens']:,} tokens in its trees"
    figure.suptitle(title.replace("$", r"\$"))  # a dollar sign would start a formula
    save_figure(figure, path, dpi=90)


def _draw_map(axes: "Axes", layers: list[dict], name: str, levels: int, scale: float | None) -> None:
    """Layers by levels as colors, with the numbers in the cells; `scale` None takes the largest value."""
    values = np.full((len(layers), levels), np.nan)
    for row, layer in zip(values, layers, strict=True):
        row[: len(layer[name])] = [math.nan if value is None else value for value in layer[name]]
    most = scale or max(np.nanmax(values), 1e-9)
    axes.imshow(values, aspect="auto", vmin=0, vmax=most, cmap="viridis")
    for row, column in zip(*np.nonzero(~np.isnan(values)), strict=True):
        value = values[row, column]
        color = "black" if value > 0.6 * most else "white"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
    axes.set(title=MEASURES[name], xlabel="level (0: root)", ylabel="layer")
    axes.set(xticks=range(levels), yticks=range(len(layers)))
    axes.grid(False)


def _draw_leaves(axes: "Axes", layers: list[dict]) -> None:
    for index, layer in enumerate(layers):
        counts = np.sort(np.concatenate(layer["leaf_counts"]))[::-1]
        fraction = counts[counts > 0] * layer["trees"] / counts.sum()
        axes.plot(np.arange(1, len(fraction) + 1), fraction, color=_color(index, len(layers)), label=f"layer {index}")
    axes.axhline(1 / 2 ** layers[0]["depth"], color="grey", linestyle="--", linewidth=1, label="an even spread")
    axes.set(xscale="log", yscale="log", title="tokens at each leaf that is used")
    axes.set(xlabel="rank of the leaf, from the fullest", ylabel="fraction of tokens")
    axes.legend(fontsize=8, ncols=1 + len(layers) // 9)


def _draw_nodes(axes: "Axes", layers: list[dict]) -> None:
    entropies = [_node_entropies(layer) for layer in layers]
    axes.boxplot(entropies, positions=range(len(layers)), whis=(5, 95), showfliers=False)
    axes.axhline(UNDECIDED, color="grey", linestyle="--", linewidth=1)
    axes.set(title="mean entropy of each node that is used (nats)\nbox: quartiles, whiskers: 5 % to 95 % of nodes")
    axes.set(xlabel="layer", ylim=(0, 0.72))


def draw_over_training(summaries: list[dict], path: Path) -> None:
    """Draws several encoders with the same trees: decision entropy by layer and level, and the use of leaves.

    The entropies are drawn over training as in figures 5 and 6 of arXiv 2308.14711.
    """
    x, x_label = _x_axis(summaries)
    count = len(summaries[0]["layers"])
    columns = min(4, max(3, count))
    rows = math.ceil(count / columns)
    figure, panels = new_figure(3.6 * columns, 2.9 * (rows + 1) + 0.5, rows + 1, columns)
    for axes in panels.flat:
        axes.set_visible(False)
    for index, axes in zip(range(count), panels[:rows].flat, strict=False):
        _draw_hardness(axes, x, [summary["layers"][index] for summary in summaries])
        axes.set(title=f"layer {index}")
    panels[0, 0].legend(fontsize=7, ncols=2, loc="lower left")
    use: dict[str, Callable[[dict], float]] = {
        "fraction of dead leaves": lambda layer: 1 - layer["used"][-1],
        "evenness of the use of leaves": lambda layer: layer["evenness"][-1],
        "fraction of decisions near zero": lambda layer: layer["mean_near_zero"],
    }
    for axes, (title, measure) in zip(panels[rows], use.items(), strict=False):
        axes.set_visible(True)
        for index in range(count):
            values = [measure(summary["layers"][index]) for summary in summaries]
            axes.plot(x, values, marker="o", markersize=3, color=_color(index, count), label=f"layer {index}")
        axes.set(title=title, xlabel=x_label)
        axes.set_ylim(bottom=0)
    panels[rows, 0].legend(fontsize=8, ncols=1 + count // 9)
    note = "above: mean entropy of decisions (nats), by level; grey: the middle 80 % of the nodes that are used"
    figure.suptitle(note)
    save_figure(figure, path, dpi=90)


def _draw_hardness(axes: "Axes", x: list[float], layers: list[dict]) -> None:
    """Decision entropies of one layer in several encoders, level by level."""
    low, high = zip(*(np.quantile(_node_entropies(layer), (0.1, 0.9)) for layer in layers), strict=True)
    axes.fill_between(x, low, high, color="0.85")
    depth = layers[0]["depth"]
    for level in range(depth):
        values = [layer["decision_entropy"][level] for layer in layers]
        axes.plot(x, values, color=_color(level, depth), linewidth=1.2, label=f"level {level}")
    axes.axhline(UNDECIDED, color="grey", linestyle="--", linewidth=1)
    axes.set(ylim=(0, 0.72), visible=True)


def _node_entropies(layer: dict) -> list[float]:
    return [entropy for tree in layer["node_entropy"] for entropy in tree if entropy is not None]


def _x_axis(summaries: list[dict]) -> tuple[list[float], str]:
    """Positions and their label: millions of tokens if they are known and increase, else the order of the encoders."""
    tokens = [summary["pretraining_tokens"] for summary in summaries]
    if None in tokens or any(later <= earlier for earlier, later in pairwise(tokens)):
        return list(range(len(summaries))), "model, in order"
    return [count / 1e6 for count in tokens], "millions of tokens"


def _color(index: int, count: int) -> tuple[float, float, float, float]:
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * index / max(1, count - 1))
