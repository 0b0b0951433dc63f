"""The figures of each experiment: Figures 2 to 6 of the paper, and its tables as figures."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ultrafastbert.experiments.candidates import TITLES
from ultrafastbert.experiments.plan import LayerTraining
from ultrafastbert.experiments.speed import LayerTiming
from ultrafastbert.experiments.summary import summarize_layers
from ultrafastbert.utils.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS = {"memorisation": "memorisation accuracy, M_A (%)", "generalisation": "generalisation accuracy, G_A (%)"}
EPOCHS = {"memorisation_epoch": "epochs to M_A", "generalisation_epoch": "epochs to G_A"}
COLORS = {TITLES["ff"]: "black", TITLES["moe"]: "C1", TITLES["fff"]: "C0"}
"""Colors of lines that several figures have; other lines take the next color."""

Plan = Sequence[LayerTraining]
Results = Sequence[dict]


def draw_widths(plan: Plan, results: Results) -> "Figure":
    """Accuracy against training width, a line for the plain layer and one for each leaf size."""
    lines = _lines(plan, results, lambda layer: f"tree, leaf size {layer['block']}")
    return _draw_metrics(lines, METRICS, "training width (neurons)", lambda layer: layer["width"])


def draw_inference_size(plan: Plan, results: Results) -> "Figure":
    """Accuracy against inference size, a line for the plain layer and one for each depth: Figure 2."""
    lines = _lines(plan, results, lambda layer: f"tree, depth {layer['depth']}")
    return _draw_metrics(lines, METRICS, "neurons used for inference", lambda layer: layer["sizes"]["inference_size"])


def draw_experts(plan: Plan, results: Results) -> "Figure":
    """Accuracy and epochs to reach it against training width, a line for each kind of layer."""
    lines = _lines(plan, results, lambda layer: TITLES["fff"])
    return _draw_metrics(lines, METRICS | EPOCHS, "training width (neurons)", lambda layer: layer["width"])


def draw_vit(plan: Plan, results: Results) -> "Figure":
    """Accuracy of the transformer against leaf size, a line for each weight of the hardening loss."""
    lines = _lines(plan, results, lambda layer: f"trees, h = {layer['hardening']}")
    [plain] = lines.pop(TITLES["ff"])
    figure, [[axes]] = new_figure(7, 4.2)
    _draw_metric(axes, lines, "generalisation", lambda layer: layer["block"])
    if plain["generalisation"]:
        axes.axhline(plain["generalisation"]["mean"], color="black", linestyle="--", label=TITLES["ff"])
    axes.set(xlabel="leaf size (neurons used by an input)", ylabel=METRICS["generalisation"])
    axes.legend(fontsize=9)
    return figure


def draw_timing(plan: Sequence[LayerTiming], results: Results) -> "Figure":
    """Time against blocks, a row for each batch size: all layers, then trees and mixtures alone; Figures 3 and 4."""
    batch_sizes = list(dict.fromkeys(timing.batch_size for timing in plan))
    figure, rows = new_figure(10, 3.8 * len(batch_sizes), len(batch_sizes), 2)
    for panels, batch_size in zip(rows, batch_sizes, strict=True):
        for axes, kinds in zip(panels, (tuple(TITLES), ("moe", "fff")), strict=True):
            for kind in kinds:
                cases = [case for case in results if case["batch_size"] == batch_size and kind in case["times"]]
                times = [case["times"][kind] for case in cases]
                _draw_line(axes, TITLES[kind], [case["blocks"] for case in cases], times)
            _log_scale(axes, "x")
            axes.set(xlabel="blocks", ylabel=f"ms a call, {batch_size} input{'s' * (batch_size > 1)}")
            axes.legend(fontsize=9)
        _log_scale(panels[0], "y")
        panels[1].set_ylim(bottom=0)
    return figure


def draw_width_entropies(plan: Plan, results: Results) -> "Figure | None":
    """How the decisions of trees of the largest leaves harden, a line for each depth: Figure 5.

    The line is the mean over the nodes of their batch-mean entropy in the first training that did not diverge; the
    band is from the least to the greatest node. None if all trainings diverged.
    """
    leaf = max(training.layer.block for training in plan if training.layer.kind == "fff")
    curves = {}
    for training, result in _hardening(plan, results):
        if training.layer.block == leaf:
            curves.setdefault(f"depth {training.layer.depth}", [tree for (tree,) in result["history"]["entropy"]])
    return _draw_entropies(curves, f"one tree, leaf size {leaf}")


def draw_vit_entropies(plan: Plan, results: Results) -> "Figure | None":
    """How the decisions of a vision transformer's trees harden, a line for each transformer layer: Figure 6.

    The trees have the largest leaves and the first weight of the hardening loss; otherwise as `draw_width_entropies`.
    """
    for training, result in _hardening(plan, results):
        layers = zip(*result["history"]["entropy"], strict=True)
        curves = {f"layer {number}": list(curve) for number, curve in enumerate(layers, start=1)}
        layer = training.layer
        return _draw_entropies(curves, f"leaf size {layer.block}, depth {layer.depth}, h = {layer.hardening:g}")
    return None


def _hardening(plan: Plan, results: Results) -> list[tuple[LayerTraining, dict]]:
    """The trainings of trees that have decisions and did not diverge."""
    pairs = zip(plan, results, strict=True)
    return [(training, result) for training, result in pairs if training.layer.depth and "diverged" not in result]


def _lines(plan: Plan, results: Results, describe: Callable[[dict], str]) -> dict[str, list[dict]]:
    """The summaries of layers by the name of their line: of trees, what `describe` returns."""
    lines: dict[str, list[dict]] = {}
    for layer in summarize_layers(plan, results)["layers"]:
        name = describe(layer) if layer["kind"] == "fff" else TITLES[layer["kind"]]
        lines.setdefault(name, []).append(layer)
    return lines


def _draw_metrics(
    lines: dict[str, list[dict]], metrics: dict[str, str], xlabel: str, x: Callable[[dict], float]
) -> "Figure":
    """A panel for each of two or four metrics, with one legend for all, which show the same lines."""
    rows = len(metrics) // 2
    figure, panels = new_figure(10, {1: 4.2, 2: 7.5}[rows], rows, 2)
    for axes, (metric, label) in zip(panels.flat, metrics.items(), strict=True):
        _draw_metric(axes, lines, metric, x)
        axes.set(xlabel=xlabel, ylabel=label)
        if metric in EPOCHS:
            _log_scale(axes, "y")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
    return figure


def _draw_metric(axes: "Axes", lines: dict[str, list[dict]], metric: str, x: Callable[[dict], float]) -> None:
    """Draws a line of means for each list of summaries; layers whose trainings all diverged are skipped."""
    for name, layers in lines.items():
        finished = sorted((layer for layer in layers if layer[metric]), key=x)
        _draw_line(axes, name, [x(layer) for layer in finished], [layer[metric] for layer in finished])
    _log_scale(axes, "x")


def _draw_line(axes: "Axes", name: str, x: list[float], statistics: list[dict]) -> None:
    """Draws means with standard deviations."""
    means, deviations = ([point[key] for point in statistics] for key in ("mean", "deviation"))
    linestyle = "--" if name == TITLES["ff"] else "-"
    style: dict[str, Any] = {"color": COLORS.get(name), "linestyle": linestyle, "marker": "o", "markersize": 4}
    axes.errorbar(x, means, deviations, capsize=2, label=name, **style)


def _draw_entropies(curves: dict[str, list], title: str) -> "Figure | None":
    if not curves:
        return None
    figure, [[axes]] = new_figure(7, 4.2)
    for index, (name, curve) in enumerate(curves.items()):
        means, least, greatest = zip(*curve, strict=True)
        epochs = range(1, len(curve) + 1)
        axes.plot(epochs, means, color=f"C{index}", label=name)
        axes.fill_between(epochs, least, greatest, color=f"C{index}", alpha=0.15, linewidth=0)
    axes.axhline(0.10, color="grey", linestyle=":", label="0.10: rounding costs little (paper)")
    axes.set(xlabel="epoch", ylabel="batch-mean entropy of a decision (nats)", title=title)
    axes.set_ylim(bottom=0)
    _log_scale(axes, "x")
    axes.legend(fontsize=9)
    return figure


def _log_scale(axes: "Axes", which: str) -> None:
    """Makes the axis `x` or `y` logarithmic, with labels at powers of 2."""
    axis, set_scale = (axes.xaxis, axes.set_xscale) if which == "x" else (axes.yaxis, axes.set_yscale)
    set_scale("log", base=2)
    axis.set_major_formatter("{x:g}")
