"""Tables of an experiment in the paper's form, made anew from the results of its runs: `NAME.md` and `NAME.json`.

Notable:
- the paper prints the best of its runs, chosen by the very accuracy that is printed; here the mean and the standard
  deviation stand beside it;
- runs that diverged have no accuracy: they are counted where they are missing, and named.
"""

import json
from pathlib import Path
from statistics import mean, stdev

from ultrafastbert.experiments.arguments import CompareArguments
from ultrafastbert.experiments.candidates import TITLES
from ultrafastbert.experiments.plan import Run
from ultrafastbert.utils.files import write_atomically

HEADINGS = {
    "widths": "Accuracy against training width and leaf size",
    "inference_size": "Accuracy against the neurons used for inference",
    "experts": "Trees beside mixtures of experts of the same training width",
    "vit": "Trees as the feedforward layers of a vision transformer",
    "timing": "Time of a forward pass against the number of blocks",
}
METRICS = {"memorisation": "M_A", "generalisation": "G_A"}
COUNTS = ("memorisation_epoch", "generalisation_epoch", "leaves_used")
"""What is no share, and shown as it is."""


def summarise(runs: list[Run], results: list[dict]) -> list[dict]:
    """One entry for each layer, in the order of `runs`.

    Args:
        runs: of one experiment.
        results: theirs, from `sweep.make_runs`.

    Returns:
        For each layer `name`, `kind`, `width`, `block`, `depth`, `hardening` and the four `sizes`, in neurons;
        `diverged`, what its diverged runs say, by their names; of the other runs `seeds`, and for `memorisation`,
        `generalisation` and `validation` (percent), `memorisation_epoch`, `generalisation_epoch` and `leaves_used` (of
        a tree, the mean over a network's trees) `values`, `best` (the greatest), `mean` and `deviation` (standard; 0
        for one run), or None where no run has any.
    """
    layers = {}
    for run, result in zip(runs, results, strict=True):
        layers.setdefault(run.layer, []).append((run, result))
    return [_summarise_layer(layer, pairs) for layer, pairs in layers.items()]


def _summarise_layer(layer, pairs: list[tuple[Run, dict]]) -> dict:
    finished = [(run, result) for run, result in pairs if "diverged" not in result]
    summary = {"name": layer.name, "kind": layer.kind, "width": layer.width, "block": layer.block}
    summary |= {"depth": layer.depth, "hardening": f"{layer.hardening:g}", "sizes": pairs[0][1]["sizes"]}
    summary |= {"diverged": {str(run): result["diverged"] for run, result in pairs if "diverged" in result}}
    summary |= {"seeds": [run.seed for run, _ in finished]}
    for name in (*METRICS, "validation", *COUNTS):
        values = [result[name] if name in COUNTS else 100 * result[name] for _, result in finished]
        if name == "leaves_used":
            values = [mean(trees) for trees in values if trees]
        deviation = stdev(values) if len(values) > 1 else 0.0
        statistics = {"values": values, "best": max(values), "mean": mean(values)} if values else None
        summary[name] = statistics and statistics | {"deviation": deviation}
    return summary


def write_report(experiment: str, arguments: CompareArguments, content: dict) -> list[Path]:
    """Writes `NAME.md` and `NAME.json` into the output directory.

    Args:
        experiment: one of `arguments.EXPERIMENTS`.
        arguments: of the comparison.
        content: what the JSON file holds: `dataset`, `environment`, and `layers`, from `summarise`, or for `timing`
            `cases`, from `speed.time_layers`.
    """
    render = {
        "widths": _widths,
        "inference_size": _inference_size,
        "experts": _experts,
        "vit": _vit,
        "timing": _timing,
    }[experiment]
    lines = [f"# {HEADINGS[experiment]}", "", _describe(experiment, arguments, content), ""]
    lines += render(getattr(arguments, experiment), content)
    lines += [
        f"- {run} diverged: {reason}"
        for layer in content.get("layers", ())
        for run, reason in layer["diverged"].items()
    ]
    output = Path(arguments.output_dir)
    table, data = output / f"{experiment}.md", output / f"{experiment}.json"
    write_atomically(table, "\n".join(lines).rstrip() + "\n")
    write_atomically(data, json.dumps({"experiment": experiment} | content, indent=1) + "\n")
    return [table, data]


def _describe(experiment: str, arguments: CompareArguments, content: dict) -> str:
    where = "; ".join(
        f"{entry['device']}, torch {entry['torch']}, Python {entry['python']}" for entry in content["environment"]
    )
    section = getattr(arguments, experiment)
    if experiment == "timing":
        return (
            f"Mean and standard deviation of a call in milliseconds; width {section.hidden_size}, blocks of"
            f" {section.block_size} neurons, of which trees and mixtures use one; {section.threads} thread(s)."
            f" {where}."
        )
    recipe = section.training
    plateau = f", halved on plateaus of {recipe.plateau} epochs ({recipe.plateau_of})" if recipe.plateau else ""
    return (
        f"{content['dataset']}; {section.runs} run(s) of each layer; {recipe.optimizer}, learning rate {recipe.lr:g}"
        f"{plateau}, batches of {recipe.batch_size}, at most {recipe.epochs} epochs, patience {recipe.patience}. M_A"
        " (memorisation) is the best accuracy on the training rows, G_A (generalisation) the accuracy on the test rows"
        " of the weights that were best on the validation rows, both in percent with hard decisions; ETT is the epoch"
        f" at which they were first seen. {where}."
    )


# the tables


def _widths(section, content: dict) -> list[str]:
    names = ["feedforward", *(f"tree, leaf size {leaf}" for leaf in section.leaf_sizes)]
    cells = {}
    for layer in content["layers"]:
        cells[names[0] if layer["kind"] == "ff" else f"tree, leaf size {layer['block']}", layer["width"]] = layer
    header = ["model", *(f"{title}, w = {width}" for width in section.widths for title in METRICS.values())]

    def table(show) -> list[str]:
        rows = [
            [name, *(show(cells[name, width], metric) for width in section.widths for metric in METRICS)]
            for name in names
        ]
        return _table(header, rows)

    return [
        *["**The best of the runs**", "", *table(_best), ""],
        *["**Mean and standard deviation**", "", *table(_spread), ""],
        *["**Epochs to train, mean**", "", *table(_epochs), ""],
        *["**Leaves reached by training rows, mean**", "", *_leaves(section, cells), ""],
    ]


def _leaves(section, cells: dict) -> list[str]:
    header = ["model", *(f"w = {width}" for width in section.widths)]
    rows = [
        [name, *(_used(cells[name, width]) for width in section.widths)]
        for name in (f"tree, leaf size {leaf}" for leaf in section.leaf_sizes)
    ]
    return _table(header, rows)


def _inference_size(section, content: dict) -> list[str]:
    header = ["inference size", "model", "training width", "M_A, best", "M_A", "G_A, best", "G_A", "leaves reached"]
    layers = sorted(content["layers"], key=lambda layer: (layer["sizes"]["inference_size"], layer["depth"]))
    rows = [
        [layer["sizes"]["inference_size"], _title(layer), layer["sizes"]["training_width"]]
        + [*(show(layer, metric) for metric in METRICS for show in (_best, _spread)), _used(layer)]
        for layer in layers
    ]
    return [*_table(header, rows), ""]


def _experts(section, content: dict) -> list[str]:
    cells = {(layer["kind"], layer["width"]): layer for layer in content["layers"]}
    titles = {
        "ff": TITLES["ff"],
        "moe": f"{TITLES['moe']} (e = {section.expert_size}, k = {section.k})",
        "fff": f"{TITLES['fff']} (l = {section.leaf_size})",
    }

    def table(show) -> list[str]:
        header = ["width"]
        for title in titles.values():
            header += [f"{title}: M_A", "ETT", "G_A", "ETT"]
        header.append("leaves reached")
        rows = []
        for width in section.widths:
            layers = [cells[kind, width] for kind in titles]
            figures = [f(layer, m) for layer in layers for m in METRICS for f in (show, _epochs)]
            rows.append([width, *figures, _used(layers[-1])])
        return _table(header, rows)

    return [
        *["**Mean and standard deviation; ETT: mean**", "", *table(_spread), ""],
        *["**The best of the runs; ETT: mean**", "", *table(_best), ""],
    ]


def _vit(section, content: dict) -> list[str]:
    header = ["model", "depth", "training width", "training size", "inference width", "inference size"]
    hardenings = [f"{hardening:g}" for hardening in section.hardenings]
    header += [f"G_A, h = {hardening}" for hardening in hardenings] + ["G_A, h by validation", "leaves reached"]
    plain, *trees = content["layers"]
    baseline = _spread(plain, "generalisation")
    rows = [["feedforward", "–", *_shares(plain, plain), *["–"] * len(hardenings), baseline, "–"]]
    for leaf in section.leaf_sizes:
        tried = [layer for layer in trees if layer["block"] == leaf]
        finished = [layer for layer in tried if layer["validation"]]
        chosen = max(finished, key=lambda layer: layer["validation"]["mean"], default=tried[0])
        cells = [_spread(layer, "generalisation") for layer in tried]
        name = f"tree, leaf size {leaf}"
        rows.append(
            [name, chosen["depth"], *_shares(chosen, plain), *cells, _spread(chosen, "generalisation"), _used(chosen)]
        )
    return [*_table(header, rows), ""]


def _shares(layer: dict, plain: dict) -> list[str]:
    """The layer's four sizes, with their share of the plain layer's."""
    sizes, all_of_it = layer["sizes"], plain["sizes"]["training_width"]
    return [f"{size} ({size / all_of_it:.0%})" for size in sizes.values()]


def _timing(section, content: dict) -> list[str]:
    lines = []
    for batch_size in section.batch_sizes:
        header = ["blocks", "depth", *TITLES.values(), "mixture / tree", "feedforward / tree"]
        rows = []
        for case in content["cases"]:
            if case["batch_size"] == batch_size:
                times = case["times"]
                cells = [_time(times[kind]) if kind in times else "–" for kind in TITLES]
                cells += [_ratio(times, "moe"), _ratio(times, "ff")]
                rows.append([f"{case['blocks']:,}", case["blocks"].bit_length() - 1, *cells])
        lines += [f"**{batch_size} input(s) a call**", "", *_table(header, rows), ""]
    return [*lines, "Ratios are of medians.", ""]


def _time(times: dict) -> str:
    return f"{times['mean']:.3g} ± {times['deviation']:.2g}"


def _ratio(times: dict, kind: str) -> str:
    return f"{times[kind]['median'] / times['fff']['median']:.3g}x" if kind in times else "–"


def _title(layer: dict) -> str:
    if layer["kind"] == "ff":
        return "feedforward"
    return f"tree, depth {layer['depth']}, leaf size {layer['block']}"


def _best(layer: dict, metric: str) -> str:
    return _cell(layer, metric, "{best:.1f}")


def _spread(layer: dict, metric: str) -> str:
    return _cell(layer, metric, "{mean:.1f} ± {deviation:.1f}" if len(layer["seeds"]) > 1 else "{mean:.1f}")


def _epochs(layer: dict, metric: str) -> str:
    return _cell(layer, f"{metric}_epoch", "{mean:.0f}")


def _used(layer: dict) -> str:
    return f"{layer['leaves_used']['mean']:.1f} of {2 ** layer['depth']}" if layer["leaves_used"] else "–"


def _cell(layer: dict, name: str, form: str) -> str:
    if layer[name] is None:
        return "diverged"
    missing = f" ({len(layer['diverged'])} diverged)" if layer["diverged"] else ""
    return form.format(**layer[name]) + missing


def _table(header: list, rows: list[list]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(map(str, cells))} |" for cells in lines]
