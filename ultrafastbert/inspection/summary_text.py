"""Summaries of encoders as tables for a terminal."""

from pathlib import Path

from ultrafastbert.inspection.statistics import NEAR_ZERO
from ultrafastbert.inspection.summary import sizes

MEASURES = {
    "used": "fraction of nodes used",
    "evenness": "evenness of use (0: all at one node, 1: even)",
    "decision_entropy": "mean entropy of decisions (nats; 0.69: undecided)",
    "near_zero": f"fraction of decisions near zero (|z| < {NEAR_ZERO})",
}
"""Titles of the lists in a summary that have an entry for each level."""
TREES_SHOWN = 4
"""Of each layer, in the table of tokens."""


def render_summary(summary: dict, traces: list[dict]) -> str:
    """Tables of one encoder, from `summarize` and `trace`."""
    parts = [_headline(summary), *map(_render_trace, traces), _render_layers(summary)]
    parts += [*(_render_levels(summary, name) for name in MEASURES), _render_fullest(summary)]
    return "\n\n".join(parts)


def _headline(summary: dict) -> str:
    layers, pretrained, cut = summary["layers"], summary["pretraining_tokens"], summary["cut"]
    size = ", ".join(str(size) for size in dict.fromkeys(sizes(summary)))
    meaning = "trees x depth" + " x neurons of a leaf" * any(size.leaf_size for size in sizes(summary))
    tokens = f", pretrained on {pretrained / 1e6:.1f} million tokens" if pretrained is not None else ""
    lines = [f"{summary['model']}: {len(layers)} layers of {size} ({meaning}){tokens}"]
    note = f"; texts cut at the encoder's last position: {cut:,}" if cut else ""
    lines += [f"{_count(summary['texts'], 'text')}, {_count(summary['tokens'], 'token')}{note}"]
    leaves = max(2 ** layer["depth"] for layer in layers)
    if summary["tokens"] < 20 * leaves:
        lines.append(f"These are few tokens for {leaves:,} leaves: more texts may use leaves that appear dead here.")
    return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _render_trace(traced: dict) -> str:
    trees = len(traced["leaves"][0][0])
    note = f", trees 0 to {TREES_SHOWN - 1} of {trees}" if trees > TREES_SHOWN else ""
    rows = [["layer", *map(str, range(len(traced["leaves"][0])))]]
    for token, layers in zip(traced["tokens"], traced["leaves"], strict=True):
        rows.append([token, *(" ".join(map(str, layer[:TREES_SHOWN])) for layer in layers)])
    return f"Leaf of each token{note}\n{_align(rows)}"


def _render_layers(summary: dict) -> str:
    rows = [["layer", "leaves", "dead", "used", "evenness", "fullest leaf", "decision entropy", "near zero"]]
    for index, layer in enumerate(summary["layers"]):
        fullest = max(map(max, layer["leaf_counts"])) / summary["tokens"]
        row = [f"{index}", f"{layer['trees'] * 2 ** layer['depth']:,}", f"{layer['dead_leaves']:,}"]
        row += [f"{layer['used'][-1]:.0%}", f"{layer['evenness'][-1]:.2f}", f"{fullest:.0%} of tokens"]
        rows.append([*row, f"{layer['mean_decision_entropy']:.2f}", f"{layer['mean_near_zero']:.1%}"])
    return f"Leaves and decisions by layer\n{_align(rows)}"


def _render_levels(summary: dict, name: str) -> str:
    depth = max(len(layer[name]) for layer in summary["layers"])
    rows = [["level", *map(str, range(depth))]]
    for index, layer in enumerate(summary["layers"]):
        cells = ["" if value is None else f"{value:.2f}" for value in layer[name]]
        rows.append([f"layer {index}", *cells, *[""] * (depth - len(cells))])
    return f"{MEASURES[name].capitalize()}\n{_align(rows)}"


def _render_fullest(summary: dict) -> str:
    lines = ["Tokens at the fullest leaves: the count of each, and the fraction of its occurrences that are there"]
    for index, layer in enumerate(summary["layers"]):
        for leaf in layer["fullest"]:
            place = f"leaf {leaf['leaf']}" + (f" of tree {leaf['tree']}" if layer["trees"] > 1 else "")
            top = ", ".join(f"{token} {count:,} ({fraction:.0%})" for token, count, fraction in leaf["top"])
            lines.append(f"layer {index}, {place}, {leaf['tokens'] / summary['tokens']:.0%} of the tokens: {top}")
    return "\n".join(lines)


def render_over_training(summaries: list[dict]) -> str:
    """Tables that compare several encoders with the same trees: a row for each encoder, a column for each layer."""
    measures = {
        "Dead leaves": lambda layer: f"{layer['dead_leaves']:,}",
        "Evenness of the use of leaves": lambda layer: f"{layer['evenness'][-1]:.2f}",
        "Mean entropy of decisions (nats; 0.69: undecided)": lambda layer: f"{layer['mean_decision_entropy']:.2f}",
        f"Fraction of decisions near zero (|z| < {NEAR_ZERO})": lambda layer: f"{layer['mean_near_zero']:.1%}",
    }
    header = ["layer", *map(str, range(len(summaries[0]["layers"])))]
    tables = []
    for title, measure in measures.items():
        rows = [[label(summary), *map(measure, summary["layers"])] for summary in summaries]
        tables.append(f"{title}\n{_align([header, *rows])}")
    return "\n\n".join(tables)


def label(summary: dict) -> str:
    """A short name of the encoder: of its checkpoint, or of the run if it is `RUN/final`, with its tokens."""
    tokens, path = summary["pretraining_tokens"], Path(summary["model"])
    name = (path.name == "final" and path.parent.name) or path.name
    return name + (f" ({tokens / 1e6:.1f} million tokens)" if tokens is not None else "")


def _align(rows: list[list[str]]) -> str:
    """Columns of equal width, the first aligned to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
