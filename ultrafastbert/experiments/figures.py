"""Pictures of an experiment as PNG: what the paper's Figures 2 to 6 show, and its tables."""

from pathlib import Path

from ultrafastbert.experiments.candidates import TITLES
from ultrafastbert.experiments.plan import Run

METRICS = {"memorisation": "memorisation accuracy, M_A (%)", "generalisation": "generalisation accuracy, G_A (%)"}
COLORS = {TITLES["ff"]: "black", TITLES["moe"]: "C1", TITLES["fff"]: "C0"}
"""Of the lines that pictures share; others take the next one."""


def draw_widths(layers: list[dict], path: Path) -> Path:
    """Accuracy against training width, a line for the plain layer and one for each leaf size."""
    lines = {}
    for layer in layers:
        name = f"tree, leaf size {layer['block']}" if layer["kind"] == "fff" else TITLES["ff"]
        lines.setdefault(name, []).append(layer)
    return _draw_accuracies(lines, "training width (neurons)", lambda layer: layer["width"], path)


def draw_inference_size(layers: list[dict], path: Path) -> Path:
    """Accuracy against inference size, a line for the plain layer and one for each depth: Figure 2."""
    lines = {}
    for layer in layers:
        name = f"tree, depth {layer['depth']}" if layer["kind"] == "fff" else TITLES["ff"]
        lines.setdefault(name, []).append(layer)
    return _draw_accuracies(lines, "neurons used for inference", lambda layer: layer["sizes"]["inference_size"], path)


def draw_experts(layers: list[dict], path: Path) -> Path:
    """Accuracy and epochs to reach it against training width, a line for each kind of layer."""
    lines = {TITLES[kind]: [layer for layer in layers if layer["kind"] == kind] for kind in TITLES}
    epochs = {"memorisation_epoch": "epochs to M_A", "generalisation_epoch": "epochs to G_A"}
    figure, rows = _figure((10, 7.5), 2, 2)
    for panels, metrics in zip(rows, (METRICS, epochs), strict=True):
        for axes, (metric, label) in zip(panels, metrics.items(), strict=True):
            _draw_lines(axes, lines, metric, lambda layer: layer["width"])
            axes.set(xlabel="training width (neurons)", ylabel=label)
            if metrics is epochs:
                _log_scale(axes, "y")
    _legend_below(figure, rows[0][0])
    return _save(figure, path)


def draw_vit(layers: list[dict], path: Path) -> Path:
    """Accuracy of the transformer against leaf size, a line for each weight of the hardening loss."""
    plain, lines = layers[0], {}
    for layer in layers[1:]:
        lines.setdefault(f"trees, h = {layer['hardening']}", []).append(layer)
    figure, [[axes]] = _figure((7, 4.2), 1, 1)
    _draw_lines(axes, lines, "generalisation", lambda layer: layer["block"])
    if plain["generalisation"]:
        axes.axhline(plain["generalisation"]["mean"], color="black", linestyle="--", label=TITLES["ff"])
    axes.set(xlabel="leaf size (neurons used by an input)", ylabel=METRICS["generalisation"])
    axes.legend(fontsize=9)
    return _save(figure, path)


def draw_timing(cases: list[dict], path: Path) -> Path:
    """Time against blocks, a row for each size of batch: all layers, and trees beside mixtures; Figures 3 and 4."""
    batch_sizes = list(dict.fromkeys(case["batch_size"] for case in cases))
    figure, rows = _figure((10, 3.8 * len(batch_sizes)), len(batch_sizes), 2)
    for panels, batch_size in zip(rows, batch_sizes, strict=True):
        for axes, kinds in zip(panels, (tuple(TITLES), ("moe", "fff")), strict=True):
            for kind in kinds:
                points = [case for case in cases if case["batch_size"] == batch_size and kind in case["times"]]
                times = [case["times"][kind] for case in points]
                means, deviations = ([time[of] for time in times] for of in ("mean", "deviation"))
                _draw_line(axes, TITLES[kind], [case["blocks"] for case in points], means, deviations)
            _log_scale(axes, "x")
            axes.set(xlabel="blocks", ylabel=f"ms a call, {batch_size} input{'s' * (batch_size > 1)}")
            axes.legend(fontsize=9)
        _log_scale(panels[0], "y")
        panels[1].set_ylim(bottom=0)
    return _save(figure, path)


def draw_width_entropies(runs: list[Run], results: list[dict], path: Path) -> Path | None:
    """How the decisions of trees of the widest leaves harden, a line for each depth: Figure 5.

    The line is the mean over the nodes of their batch-mean entropy in the first run that did not diverge, the band
    goes from the least to the greatest node.
    """
    widest = max(run.layer.block for run in runs if run.layer.kind == "fff")
    curves = {}
    for run, result in zip(runs, results, strict=True):
        if run.layer.depth and run.layer.block == widest and "diverged" not in result:
            curves.setdefault(f"depth {run.layer.depth}", [tree for (tree,) in result["history"]["entropy"]])
    return _draw_entropies(curves, f"one tree, leaf size {widest}", path)


def draw_vit_entropies(runs: list[Run], results: list[dict], path: Path) -> Path | None:
    """How the decisions of a vision transformer's trees harden, a line for each of its layers: Figure 6.

    Of the widest leaves and the first weight of the hardening loss; otherwise as in `draw_width_entropies`.
    """
    for run, result in zip(runs, results, strict=True):
        if run.layer.depth and "diverged" not in result:
            layers = zip(*result["history"]["entropy"], strict=True)
            curves = {f"layer {number}": curve for number, curve in enumerate(layers, start=1)}
            title = f"leaf size {run.layer.block}, depth {run.layer.depth}, h = {run.layer.hardening:g}"
            return _draw_entropies(curves, title, path)
    return None


def _draw_accuracies(lines: dict[str, list[dict]], xlabel: str, x, path: Path) -> Path:
    figure, [panels] = _figure((10, 4.2), 1, 2)
    for axes, (metric, label) in zip(panels, METRICS.items(), strict=True):
        _draw_lines(axes, lines, metric, x)
        axes.set(xlabel=xlabel, ylabel=label)
    _legend_below(figure, panels[0])
    return _save(figure, path)


def _draw_lines(axes, lines: dict[str, list[dict]], metric: str, x) -> None:
    """Means with standard deviations; layers all of whose runs diverged are left out."""
    for name, layers in lines.items():
        points = sorted((layer for layer in layers if layer[metric]), key=x)
        means, deviations = ([layer[metric][of] for layer in points] for of in ("mean", "deviation"))
        _draw_line(axes, name, [x(layer) for layer in points], means, deviations)
    _log_scale(axes, "x")


def _draw_line(axes, name: str, x: list, means: list, deviations: list) -> None:
    style = {"color": COLORS.get(name), "linestyle": "--" if name == TITLES["ff"] else "-"}
    axes.errorbar(x, means, deviations, marker="o", markersize=4, capsize=2, label=name, **style)


def _draw_entropies(curves: dict[str, list], title: str, path: Path) -> Path | None:
    if not curves:
        return None
    figure, [[axes]] = _figure((7, 4.2), 1, 1)
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
    return _save(figure, path)


def _legend_below(figure, axes) -> None:
    """One legend for all panels, which show the same lines as `axes`."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)


def _log_scale(axes, which: str) -> None:
    """Makes the axis `x` or `y` logarithmic, with a label at powers of 2."""
    getattr(axes, f"set_{which}scale")("log", base=2)
    getattr(axes, f"{which}axis").set_major_formatter("{x:g}")


def _figure(size: tuple[float, float], rows: int, columns: int):
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    return figure, panels


def _save(figure, path: Path) -> Path:
    figure.savefig(path, dpi=100)
    return path
