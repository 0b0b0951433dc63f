"""What there is to see in the trees of an encoder, as numbers (JSON), as tables for a terminal, and as pictures.

One encoder is shown in full, level by level. Several, such as the checkpoints of a run, are shown against each other,
with the entropy of decisions over training as in figures 5 and 6 of arXiv 2308.14711.
"""

import io
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ultrafastbert.finetuning.data.encoding import EncodedSplit, evaluation_batches
from ultrafastbert.finetuning.data.tasks import Split
from ultrafastbert.inspection.loading import Encoder
from ultrafastbert.inspection.statistics import TreeStatistics, leaves_of_tokens
from ultrafastbert.layers.usage import evenness
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import write_atomically

ROWS = 16
"""Texts in a batch."""
TOKENS_SHOWN = 8
"""Of the tokens that gather at a leaf."""
TREES_SHOWN = 4
"""In the terminal's table of tokens; JSON has all."""
MEASURES = {
    "used": "share of nodes in use",
    "evenness": "evenness of use (0: all at one node, 1: even)",
    "decision_entropy": "mean entropy of decisions (nats; 0.69: undecided)",
    "near_zero": "share of decisions near zero (|z| < 0.1)",
}
"""What is known of each level of a layer."""


# numbers


def inspect(encoder: Encoder, texts: list[str], shown_leaves: int) -> dict:
    """Sends texts through an encoder and describes what its trees did with them.

    Args:
        encoder: from `load_encoder`.
        texts: at least one; those that are longer than the encoder's positions are cut.
        shown_leaves: how many of the fullest leaves of a layer are described.

    Returns:
        JSON types: `model`, `pretraining_tokens`, `texts`, `cut` (how many texts were), `tokens` (that were counted)
        and `layers`, each with

        - `trees`, `depth`, `dead_leaves`, `leaf_counts` `(trees, leaves)`;
        - by level, from the root to the leaves, `used` and `evenness`, means over trees, the latter None at the root;
        - by level, from the root to the one above the leaves, `decision_entropy` and `near_zero`, means over tokens;
        - `node_entropy` `(trees, nodes)`, in heap order, the mean over the tokens at each node, None without any;
        - `mean_decision_entropy` and `mean_near_zero`, over all decisions;
        - `fullest`: `tree`, `leaf`, `tokens` and `top`, triples of the most frequent tokens there, their number and
          which share that is of all tokens of their kind.

    Raises:
        UserError: texts without any token.
    """
    rows = Split("texts", [(text,) for text in texts], None, [])
    encoded = EncodedSplit(rows, encoder.tokenizer, encoder.model.config.max_position_embeddings)
    if not encoded.lengths.any():
        raise UserError(f"the tokenizer of {encoder.name} finds no tokens in the texts")
    statistics = TreeStatistics(encoder.model)
    batches = evaluation_batches(encoded.lengths, ROWS)
    for batch in tqdm(batches, desc=encoder.name, unit="batch", leave=False, disable=None):
        inputs = encoded.batch(batch)
        statistics.run(inputs["input_ids"], inputs["attention_mask"])
    return {
        "model": encoder.name,
        "pretraining_tokens": encoder.tokens,
        "texts": len(texts),
        "cut": encoded.truncated,
        "tokens": int(statistics.token_counts.sum()),
        "layers": [
            _describe_layer(statistics, index, encoder, shown_leaves) for index in range(len(statistics.layers))
        ],
    }


def _describe_layer(statistics: TreeStatistics, index: int, encoder: Encoder, shown_leaves: int) -> dict:
    layer, counts, visits = statistics.layers[index], statistics.counts[index], statistics.visits(index)
    entropies, near_zero = statistics.entropy_sums[index], statistics.near_zero[index]
    by_level = [2**level - 1 for level in range(1, layer.depth)]  # the first node of each level but the root
    decided = [int(nodes.sum()) for nodes in visits[:-1]]
    use = [evenness(nodes) for nodes in visits[1:]]
    passed = torch.cat(visits[:-1], dim=1)  # (trees, nodes)
    return {
        "trees": layer.trees,
        "depth": layer.depth,
        "dead_leaves": int((counts == 0).sum()),
        "leaf_counts": counts.tolist(),
        "used": [1.0, *(used for used, _ in use)],
        "evenness": [None, *(even for _, even in use)],
        "decision_entropy": _means(entropies.tensor_split(by_level, dim=1), decided),
        "near_zero": _means(near_zero.tensor_split(by_level, dim=1), decided),
        "node_entropy": [
            [total / count if count else None for total, count in zip(*tree, strict=True)]
            for tree in zip(entropies.tolist(), passed.tolist(), strict=True)
        ],
        "mean_decision_entropy": (entropies.sum() / sum(decided)).item(),
        "mean_near_zero": (near_zero.sum() / sum(decided)).item(),
        "fullest": [_describe_leaf(statistics, index, encoder, place) for place in _fullest(counts, shown_leaves)],
    }


def _means(levels: tuple[torch.Tensor, ...], counts: list[int]) -> list[float]:
    return [level.sum().item() / count for level, count in zip(levels, counts, strict=True)]


def _fullest(counts: torch.Tensor, most: int) -> list[tuple[int, int]]:
    """The tree and leaf of the leaves with most tokens; leaves without any are not among them."""
    order = counts.flatten().argsort(descending=True, stable=True)[:most].tolist()
    places = [divmod(place, counts.shape[1]) for place in order]
    return [(tree, leaf) for tree, leaf in places if counts[tree, leaf]]


def _describe_leaf(statistics: TreeStatistics, index: int, encoder: Encoder, place: tuple[int, int]) -> dict:
    tree, leaf = place
    ids, counts = (values[:TOKENS_SHOWN] for values in statistics.tokens_at(index, tree, leaf))
    shares = counts / statistics.token_counts[ids]
    tokens = encoder.tokenizer.convert_ids_to_tokens(ids.tolist())
    return {
        "tree": tree,
        "leaf": leaf,
        "tokens": int(statistics.counts[index][tree, leaf]),
        "top": [list(row) for row in zip(tokens, counts.tolist(), shares.tolist(), strict=True)],
    }


def sizes(result: dict) -> list[tuple[int, int]]:
    """Trees and depth of each layer of what `inspect` described."""
    return [(layer["trees"], layer["depth"]) for layer in result["layers"]]


def trace(encoder: Encoder, text: str) -> dict:
    """The leaf of every token of a text: `text`, `tokens` (as the tokenizer writes them) and `leaves`, `(tokens,
    layers, trees)` as nested lists. A text longer than the encoder's positions is cut."""
    longest = encoder.model.config.max_position_embeddings
    inputs = encoder.tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
    found = leaves_of_tokens(encoder.model, input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    tokens = encoder.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    leaves = [[layer[0, place].tolist() for layer in found] for place in range(len(tokens))]
    return {"text": text, "tokens": tokens, "leaves": leaves}


# tables


def render(result: dict, traces: list[dict]) -> str:
    """One encoder in full, from `inspect` and `trace`."""
    parts = [_headline(result), *map(_render_trace, traces), _render_layers(result)]
    parts += [_render_levels(result, name) for name in MEASURES]
    parts += [_render_fullest(result)]
    return "\n\n".join(parts)


def _headline(result: dict) -> str:
    layers = result["layers"]
    size = ", ".join(f"{trees}x{depth}" for trees, depth in dict.fromkeys(sizes(result)))
    pretrained = result["pretraining_tokens"]
    lines = [
        f"{result['model']}: {len(layers)} layers of {size} (trees x depth)"
        + (f", pretrained on {pretrained / 1e6:.1f} million tokens" if pretrained is not None else ""),
        f"{_count(result['texts'], 'text')}, {_count(result['tokens'], 'token')}"
        + (f"; texts cut at the encoder's last position: {result['cut']:,}" if result["cut"] else ""),
    ]
    leaves = max(2 ** layer["depth"] for layer in layers)
    if result["tokens"] < 20 * leaves:
        lines.append(f"These are few tokens for {leaves:,} leaves: a leaf without any is not a dead one yet.")
    return "\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _render_trace(traced: dict) -> str:
    trees = len(traced["leaves"][0][0])
    note = f", trees 0 to {TREES_SHOWN - 1} of {trees}" if trees > TREES_SHOWN else ""
    header = ["layer", *map(str, range(len(traced["leaves"][0])))]
    rows = [
        [token, *(" ".join(map(str, layer[:TREES_SHOWN])) for layer in place)]
        for token, place in zip(traced["tokens"], traced["leaves"], strict=True)
    ]
    return f"Leaf of each token{note}\n{_align([header, *rows])}"


def _render_layers(result: dict) -> str:
    header = ["layer", "leaves", "dead", "used", "evenness", "fullest leaf", "decision entropy", "near zero"]
    rows = []
    for index, layer in enumerate(result["layers"]):
        fullest = max(map(max, layer["leaf_counts"])) / result["tokens"]
        rows.append(
            [f"{index}", f"{layer['trees'] * 2 ** layer['depth']:,}", f"{layer['dead_leaves']:,}"]
            + [f"{layer['used'][-1]:.0%}", f"{layer['evenness'][-1]:.2f}", f"{fullest:.0%} of tokens"]
            + [f"{layer['mean_decision_entropy']:.2f}", f"{layer['mean_near_zero']:.1%}"]
        )
    return f"Leaves and decisions by layer\n{_align([header, *rows])}"


def _render_levels(result: dict, name: str) -> str:
    depth = max(len(layer[name]) for layer in result["layers"])
    header = ["level", *map(str, range(depth))]
    rows = [
        [f"layer {index}", *("" if value is None else f"{value:.2f}" for value in layer[name])]
        for index, layer in enumerate(result["layers"])
    ]
    return f"{MEASURES[name].capitalize()}\n{_align([header, *rows])}"


def _render_fullest(result: dict) -> str:
    lines = ["Tokens at the fullest leaves: how many of each, and which share of their kind that is"]
    for index, layer in enumerate(result["layers"]):
        for leaf in layer["fullest"]:
            place = f"leaf {leaf['leaf']}" + (f" of tree {leaf['tree']}" if layer["trees"] > 1 else "")
            top = ", ".join(f"{token} {count:,} ({share:.0%})" for token, count, share in leaf["top"])
            lines.append(f"layer {index}, {place}, {leaf['tokens'] / result['tokens']:.0%} of the tokens: {top}")
    return "\n".join(lines)


def render_over_training(results: list[dict]) -> str:
    """Several encoders of one shape against each other, from `inspect`: a row for each, a column for each layer."""
    figures = {
        "Dead leaves": lambda layer: f"{layer['dead_leaves']:,}",
        "Evenness of the use of leaves": lambda layer: f"{layer['evenness'][-1]:.2f}",
        "Mean entropy of decisions (nats; 0.69: undecided)": lambda layer: f"{layer['mean_decision_entropy']:.2f}",
        "Share of decisions near zero (|z| < 0.1)": lambda layer: f"{layer['mean_near_zero']:.1%}",
    }
    header = ["layer", *map(str, range(len(results[0]["layers"])))]
    return "\n\n".join(
        f"{title}\n{_align([header, *([_label(result), *map(figure, result['layers'])] for result in results)])}"
        for title, figure in figures.items()
    )


def _label(result: dict) -> str:
    tokens, path = result["pretraining_tokens"], Path(result["model"])
    name = (path.name == "final" and path.parent.name) or path.name
    return name + (f" ({tokens / 1e6:.1f} million tokens)" if tokens is not None else "")


def _align(rows: list[list[str]]) -> str:
    """Columns of equal width, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)


# pictures


def draw(result: dict, path: Path) -> None:
    """Draws one encoder: its levels as maps, how full its leaves are, and how hard its nodes decide."""
    from matplotlib.figure import Figure

    layers = result["layers"]
    depth = max(layer["depth"] for layer in layers)
    height = 3.2 + 0.28 * len(layers)
    figure = Figure(figsize=(14, 2 * height), layout="constrained")
    axes = figure.subplots(2, 3)
    for place, (name, scale) in zip(
        (axes[0, 0], axes[0, 1], axes[1, 0], axes[1, 1]),
        {"used": 1, "evenness": 1, "decision_entropy": math.log(2), "near_zero": None}.items(),
        strict=True,
    ):
        _draw_map(place, layers, name, depth + 1, scale)
    _draw_leaves(axes[0, 2], layers)
    _draw_nodes(axes[1, 2], layers)
    figure.suptitle(_plain(f"{_label(result)}: what {result['tokens']:,} tokens do in its trees"))
    _save(figure, path)


def _draw_map(axes, layers: list[dict], name: str, levels: int, scale: float | None) -> None:
    """Layers by levels as colours, with the figures in the cells; `scale` None takes the largest value."""
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


def _draw_leaves(axes, layers: list[dict]) -> None:
    for index, layer in enumerate(layers):
        counts = np.sort(np.concatenate(layer["leaf_counts"]))[::-1]
        share = counts[counts > 0] * layer["trees"] / counts.sum()
        axes.plot(np.arange(1, len(share) + 1), share, color=_color(index, len(layers)), label=f"layer {index}")
    axes.axhline(1 / 2 ** layers[0]["depth"], color="grey", linestyle="--", linewidth=1, label="an even spread")
    axes.set(xscale="log", yscale="log", title="tokens at each leaf in use")
    axes.set(xlabel="rank of the leaf, from the fullest", ylabel="share of tokens")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=1 + len(layers) // 9)


def _draw_nodes(axes, layers: list[dict]) -> None:
    nodes = [_node_entropies(layer) for layer in layers]
    axes.boxplot(nodes, positions=range(len(layers)), whis=(5, 95), showfliers=False)
    axes.axhline(math.log(2), color="grey", linestyle="--", linewidth=1)
    axes.set(title="mean entropy of each node in use (nats)\nbox: quartiles, whiskers: 5 % to 95 % of nodes")
    axes.set(xlabel="layer", ylim=(0, 0.72))
    axes.grid(alpha=0.3, axis="y")


def draw_over_training(results: list[dict], path: Path) -> None:
    """Draws several encoders of one shape against each other: the entropy of decisions of each layer, level by level,
    after figures 5 and 6 of arXiv 2308.14711, and the use of leaves."""
    from matplotlib.figure import Figure

    count = len(results[0]["layers"])
    columns = min(4, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(8, 3.6 * columns), 2.9 * rows + 3.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(2.9 * rows, 3.4))
    panels = above.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for index, axes in zip(range(count), panels, strict=False):
        _draw_hardness(axes, results, index)
    for axes in list(panels)[count:]:
        axes.set_visible(False)
    above.suptitle("mean entropy of decisions (nats), by level; grey: the middle 80 % of the nodes in use")
    above.supxlabel(_x_label(results), fontsize="medium")
    use = {
        "share of dead leaves": lambda layer: 1 - layer["used"][-1],
        "evenness of the use of leaves": lambda layer: layer["evenness"][-1],
        "share of decisions near zero": lambda layer: layer["mean_near_zero"],
    }
    for axes, (title, figure_of) in zip(below.subplots(1, len(use)), use.items(), strict=True):
        for index in range(count):
            values = [figure_of(result["layers"][index]) for result in results]
            axes.plot(
                _x(results), values, marker="o", markersize=3, color=_color(index, count), label=f"layer {index}"
            )
        axes.set(title=title, xlabel=_x_label(results))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=1 + count // 9)
    _save(figure, path)


def _draw_hardness(axes, results: list[dict], index: int) -> None:
    layers, x = [result["layers"][index] for result in results], _x(results)
    bounds = [np.quantile(_node_entropies(layer), (0.1, 0.9)) for layer in layers]
    axes.fill_between(x, *zip(*bounds, strict=True), color="0.85")
    for level in range(layers[0]["depth"]):
        values = [layer["decision_entropy"][level] for layer in layers]
        axes.plot(x, values, color=_color(level, layers[0]["depth"]), linewidth=1.2, label=f"level {level}")
    axes.axhline(math.log(2), color="grey", linestyle="--", linewidth=1)
    axes.set(title=f"layer {index}", ylim=(0, 0.72))
    axes.grid(alpha=0.3)
    if index == 0:
        axes.legend(fontsize=7, ncols=2, loc="lower left")


def _node_entropies(layer: dict) -> list[float]:
    return [entropy for tree in layer["node_entropy"] for entropy in tree if entropy is not None]


def _x(results: list[dict]) -> list[float]:
    """Millions of tokens where they tell the models apart and in order, else the models' numbers."""
    tokens = [result["pretraining_tokens"] for result in results]
    if None in tokens or any(later <= earlier for earlier, later in pairwise(tokens)):
        return list(range(len(results)))
    return [count / 1e6 for count in tokens]


def _x_label(results: list[dict]) -> str:
    return "model, in order" if isinstance(_x(results)[0], int) else "millions of tokens"


def _color(index: int, count: int):
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * index / max(1, count - 1))


def _save(figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, dpi=90)
    write_atomically(path, content.getvalue())


def _plain(text: str) -> str:
    """`text` without dollar signs that would start a formula."""
    return text.replace("$", r"\$")
