"""The tables of each experiment, in the form of the paper.

Notable:
- The paper prints the best of its trainings, chosen by the very accuracy that it prints. Here the mean and standard
  deviation are printed too.
- Trainings that diverged have no accuracy: their number is in the cell where they are missing, their names below.
"""

from collections.abc import Callable
from typing import Any

from ultrafastbert.experiments import arguments as sections
from ultrafastbert.experiments.candidates import TITLES
from ultrafastbert.utils.tables import markdown_table

HEADINGS = {
    "widths": "Accuracy against training width and leaf size",
    "inference_size": "Accuracy against the number of neurons used in inference",
    "experts": "Trees and mixtures of experts of the same training widths",
    "vit": "Trees as the feedforward layers of a vision transformer",
    "timing": "Time of a forward pass against the number of blocks",
}
METRICS = {"memorisation": "M_A", "generalisation": "G_A"}

Show = Callable[[dict, str], str]
"""The text of a cell for a layer's summary and the name of a metric."""


def render(section: Any, content: dict, tables: Callable[[Any, dict], list[str]]) -> str:
    """An experiment's Markdown file.

    Args:
        section: the experiment's options.
        content: what the experiment's JSON file contains.
        tables: the function that returns the tables, one of those below.
    """
    describe = _describe_training if "layers" in content else _describe_timing
    where = "; ".join(f"{e['device']}, torch {e['torch']}, Python {e['python']}" for e in content["environment"])
    diverged = [pair for layer in content.get("layers", ()) for pair in layer["diverged"].items()]
    paragraphs = [
        f"# {HEADINGS[content['experiment']]}",
        f"{describe(section, content)} {where}.",
        *tables(section, content),
    ]
    if diverged:
        paragraphs.append("\n".join(f"- {run} diverged: {reason}" for run, reason in diverged))
    return "\n\n".join(paragraphs) + "\n"


def _describe_training(section: sections.WidthsArguments, content: dict) -> str:
    training = section.training
    plateau = f", halved on plateaus of {training.plateau} epochs ({training.plateau_of})" if training.plateau else ""
    return (
        f"{content['dataset']}; trainings of each layer: {section.runs}; {training.optimizer}, learning rate"
        f" {training.lr:g}{plateau}, batches of {training.batch_size}, at most {training.epochs} epochs, patience"
        f" {training.patience}. M_A (memorisation) is the best accuracy on the training images, G_A (generalisation)"
        " the accuracy on the test images of the weights that were best on the validation images, both in percent with"
        " hard decisions; ETT is the epoch at which they were first reached."
    )


def _describe_timing(section: sections.TimingArguments, content: dict) -> str:
    return (
        f"Mean and standard deviation of a call in milliseconds; width {section.hidden_size}, blocks of"
        f" {section.block_size} neurons, of which trees and mixtures use one; threads: {section.threads}."
    )


def widths_tables(section: sections.WidthsArguments, content: dict) -> list[str]:
    """Table 1: a row for each kind of layer, columns for each width."""
    names = [TITLES["ff"], *(f"tree, leaf size {leaf}" for leaf in section.leaf_sizes)]
    cells = {}
    for layer in content["layers"]:
        name = TITLES["ff"] if layer["kind"] == "ff" else f"tree, leaf size {layer['block']}"
        cells[name, layer["width"]] = layer
    columns = [(width, metric) for width in section.widths for metric in METRICS]

    def table(show: Show) -> str:
        header = ["model", *(f"{METRICS[metric]}, w = {width}" for width, metric in columns)]
        rows = [[name, *(show(cells[name, width], metric) for width, metric in columns)] for name in names]
        return markdown_table(header, rows)

    reached = [[name, *(_leaves(cells[name, width]) for width in section.widths)] for name in names[1:]]
    leaves = markdown_table(["model", *(f"w = {width}" for width in section.widths)], reached)
    return [
        *["**The best training**", table(_best)],
        *["**Mean and standard deviation**", table(_mean)],
        *["**Epochs to train, mean**", table(_epochs)],
        *["**Leaves reached by training images, mean**", leaves],
    ]


def inference_size_tables(section: sections.InferenceSizeArguments, content: dict) -> list[str]:
    """Figure 2 as a table: a row for each layer, sorted by inference size."""
    header = ["inference size", "model", "training width", "M_A, best", "M_A", "G_A, best", "G_A", "leaves reached"]
    rows = []
    for layer in sorted(content["layers"], key=lambda layer: (layer["sizes"]["inference_size"], layer["depth"])):
        is_tree = layer["kind"] == "fff"
        title = f"tree, depth {layer['depth']}, leaf size {layer['block']}" if is_tree else TITLES["ff"]
        accuracies = [show(layer, metric) for metric in METRICS for show in (_best, _mean)]
        sizes = layer["sizes"]
        rows.append([sizes["inference_size"], title, sizes["training_width"], *accuracies, _leaves(layer)])
    return [markdown_table(header, rows)]


def experts_tables(section: sections.ExpertsArguments, content: dict) -> list[str]:
    """Table 2: a row for each width, the three kinds of layers side by side."""
    cells = {(layer["kind"], layer["width"]): layer for layer in content["layers"]}
    sizes = ["", f" (e = {section.expert_size}, k = {section.k})", f" (l = {section.leaf_size})"]
    columns = []
    for title, size in zip(TITLES.values(), sizes, strict=True):
        columns += [f"{title}{size}: M_A", "ETT", "G_A", "ETT"]

    def table(show: Show) -> str:
        rows = []
        for width in section.widths:
            of_width = [cells[kind, width] for kind in TITLES]
            numbers = [cell(layer, metric) for layer in of_width for metric in METRICS for cell in (show, _epochs)]
            rows.append([width, *numbers, _leaves(cells["fff", width])])
        return markdown_table(["width", *columns, "leaves reached"], rows)

    return [
        *["**Mean and standard deviation; ETT: mean**", table(_mean)],
        *["**The best training; ETT: mean**", table(_best)],
    ]


def vit_tables(section: sections.VitArguments, content: dict) -> list[str]:
    """Table 3: a row for each leaf size, with the accuracy for each weight of the hardening loss."""
    header = ["model", "depth", "training width", "training size", "inference width", "inference size"]
    header += [*(f"G_A, h = {hardening:g}" for hardening in section.hardenings), "G_A, h by validation"]
    header += ["leaves reached"]
    plain, *trees = content["layers"]
    untried = ["–"] * len(section.hardenings)
    rows = [[TITLES["ff"], "–", *_relative_sizes(plain, plain), *untried, _mean(plain, "generalisation"), "–"]]
    for leaf in section.leaf_sizes:
        tried = [layer for layer in trees if layer["block"] == leaf]
        finished = [layer for layer in tried if layer["validation"]]
        chosen = max(finished, key=lambda layer: layer["validation"]["mean"], default=tried[0])
        accuracies = [_mean(layer, "generalisation") for layer in [*tried, chosen]]
        sizes = _relative_sizes(chosen, plain)
        rows.append([f"tree, leaf size {leaf}", chosen["depth"], *sizes, *accuracies, _leaves(chosen)])
    return [markdown_table(header, rows)]


def timing_tables(section: sections.TimingArguments, content: dict) -> list[str]:
    """Figures 3 and 4 as tables, one for each batch size: a row for each number of blocks."""
    header = ["blocks", "depth", *TITLES.values(), "mixture / tree", "feedforward / tree"]
    parts = []
    for batch_size in section.batch_sizes:
        rows = []
        for case in (case for case in content["cases"] if case["batch_size"] == batch_size):
            blocks, times = case["blocks"], case["times"]
            cells = [_time(times, kind) for kind in TITLES]
            rows.append([f"{blocks:,}", blocks.bit_length() - 1, *cells, _ratio(times, "moe"), _ratio(times, "ff")])
        parts += [f"**Inputs in a call: {batch_size}**", markdown_table(header, rows)]
    return [*parts, "Ratios are of medians."]


def _relative_sizes(layer: dict, plain: dict) -> list[str]:
    """The four sizes of a layer, also as fractions of the plain layer's."""
    return [f"{size} ({size / plain['sizes']['training_width']:.0%})" for size in layer["sizes"].values()]


def _time(times: dict, kind: str) -> str:
    return f"{times[kind]['mean']:.3g} ± {times[kind]['deviation']:.2g}" if kind in times else "–"


def _ratio(times: dict, kind: str) -> str:
    return f"{times[kind]['median'] / times['fff']['median']:.3g}x" if kind in times else "–"


def _best(layer: dict, metric: str) -> str:
    return _cell(layer, metric, "{best:.1f}")


def _mean(layer: dict, metric: str) -> str:
    return _cell(layer, metric, "{mean:.1f} ± {deviation:.1f}" if len(layer["seeds"]) > 1 else "{mean:.1f}")


def _epochs(layer: dict, metric: str) -> str:
    return _cell(layer, f"{metric}_epoch", "{mean:.0f}")


def _leaves(layer: dict) -> str:
    return f"{layer['leaves_used']['mean']:.1f} of {2 ** layer['depth']}" if layer["leaves_used"] else "–"


def _cell(layer: dict, name: str, form: str) -> str:
    if layer[name] is None:
        return "diverged"
    missing = f" ({len(layer['diverged'])} diverged)" if layer["diverged"] else ""
    return form.format(**layer[name]) + missing
