"""Plots of runs as PNG, from their `metrics.jsonl`."""

from pathlib import Path

from ultrafastbert.runs.reporter import read_metrics


def plot_runs(runs: dict[str, Path], directory: Path, unigram_entropy: float | None = None) -> list[Path]:
    """Draws `loss.png`, `throughput.png` and, where there are trees, `leaves.png`.

    Args:
        runs: the directory of each run, by the name it has in the legend.
        directory: where the pictures go; made if it is not there.
        unigram_entropy: of the training tokens, drawn as the line that a model must get below. [nats]

    Returns:
        The files written.

    Raises:
        ValueError: a run has no metrics.
    """
    metrics = {name: read_metrics(run / "metrics.jsonl") for name, run in runs.items()}
    for name, run in runs.items():
        if not metrics[name]:
            raise ValueError(f"{run / 'metrics.jsonl'} has no metrics; it should be the file of a pretraining run")
    directory.mkdir(parents=True, exist_ok=True)
    files = [_draw_loss(metrics, directory / "loss.png", unigram_entropy)]
    files.append(_draw_throughput(metrics, directory / "throughput.png"))
    if any("leaf_entropy" in line for lines in metrics.values() for line in lines):
        files.append(_draw_leaves(metrics, directory / "leaves.png"))
    return files


def _series(lines, name):
    """Millions of tokens and the values of `name` where a line has it."""
    points = [(line["tokens"] / 1e6, line[name]) for line in lines if line.get(name) is not None]
    return zip(*points, strict=True) if points else ((), ())


def _draw_loss(metrics, path, unigram_entropy):
    figure, axes = _figure("masked-token loss (nats)")
    for index, (name, lines) in enumerate(metrics.items()):
        axes.plot(*_series(lines, "loss"), color=f"C{index}", alpha=0.35, linewidth=1, label=f"{name}, training")
        axes.plot(
            *_series(lines, "validation_loss"),
            color=f"C{index}",
            marker="o",
            markersize=3,
            label=f"{name}, validation",
        )
    if unigram_entropy is not None:
        axes.axhline(unigram_entropy, color="grey", linestyle="--", label="unigram entropy of the data")
    return _save(figure, axes, path)


def _draw_throughput(metrics, path):
    figure, axes = _figure("tokens per second")
    for name, lines in metrics.items():
        axes.plot(*_series(lines, "tokens_per_second"), linewidth=1, label=name)
    axes.set_ylim(bottom=0)
    return _save(figure, axes, path)


def _draw_leaves(metrics, path):
    figure, axes = _figure("entropy of leaf use (1: even, 0: collapsed)")
    for index, (name, lines) in enumerate(metrics.items()):
        evaluations = [line for line in lines if line.get("leaf_entropy")]
        for layer in range(len(evaluations[0]["leaf_entropy"]) if evaluations else 0):
            points = [(line["tokens"] / 1e6, line["leaf_entropy"][layer]) for line in evaluations]
            label = f"{name}, layers 0 (light) and up" if layer == 0 else None
            depth = 0.3 + 0.7 * layer / max(1, len(evaluations[0]["leaf_entropy"]) - 1)
            axes.plot(
                *zip(*points, strict=True), color=f"C{index}", alpha=depth, marker="o", markersize=3, label=label
            )
    axes.set_ylim(0, 1.02)
    return _save(figure, axes, path)


def _figure(ylabel):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot(xlabel="millions of tokens", ylabel=ylabel)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure, axes, path):
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    return path
