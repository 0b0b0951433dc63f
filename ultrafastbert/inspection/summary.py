"""Summaries of what the trees of an encoder do with texts, as data: dicts of JSON types.

`summary_text` shows them as tables, `summary_figures` as pictures.
"""

import torch

from ultrafastbert.finetuning.data.encoding import EncodedSplit, evaluation_batches
from ultrafastbert.finetuning.data.tasks import Split
from ultrafastbert.inspection.loading import Encoder
from ultrafastbert.inspection.statistics import TreeStatistics, leaves_of_tokens
from ultrafastbert.layers.usage import evenness
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.progress import track
from ultrafastbert.utils.sizes import TreeSize

TOKENS_OF_A_LEAF = 8
"""The most frequent tokens of a leaf that a summary lists."""


def summarize(encoder: Encoder, texts: list[str], fullest: int) -> dict:
    """Runs an encoder on texts and summarizes what its trees do with them; `summarize_with_statistics` without these.

    Raises:
        UserError: texts without any token.
    """
    return summarize_with_statistics(encoder, texts, fullest)[0]


def summarize_with_statistics(encoder: Encoder, texts: list[str], fullest: int) -> tuple[dict, TreeStatistics]:
    """Runs an encoder on texts and summarizes what its trees do with them.

    Args:
        encoder: from `load_encoder`.
        texts: at least one. A text longer than the encoder's positions is cut.
        fullest: how many of the fullest leaves of each layer to describe.

    Returns:
        The summary and the statistics that it is made from. The summary has JSON types:
        `model`, `pretraining_tokens`, `texts`, `cut` (how many texts were), `tokens` (that were counted) and `layers`,
        each with

        - `trees`, `depth`, `leaf_size` (None where every node is a neuron);
        - `dead_leaves`, `leaf_counts` `(trees, leaves)`;
        - by level, from the root to the leaves, `used` and `evenness`, means over trees, the latter None at the root;
        - by level, from the root to the one above the leaves, `decision_entropy` and `near_zero`, means over tokens;
        - `node_entropy` `(trees, nodes)`, in heap order, the mean over the tokens at each node, None without any;
        - `mean_decision_entropy` and `mean_near_zero`, over all decisions;
        - `fullest`: `tree`, `leaf`, `tokens` and `top`, a list for each of the most frequent tokens there: the token,
          its count at the leaf, and the fraction of its occurrences that are there.

    Raises:
        UserError: texts without any token.
    """
    examples = Split("texts", [(text,) for text in texts], None, [])
    encoded = EncodedSplit(examples, encoder.tokenizer, encoder.model.config.max_position_embeddings)
    if not encoded.lengths.any():
        raise UserError(f"the tokenizer of {encoder.name} finds no tokens in the texts")
    statistics = TreeStatistics(encoder.model)
    for batch in track(evaluation_batches(encoded.lengths, batch_size=16), encoder.name, "batch", leave=False):
        inputs = encoded.batch(batch)
        statistics.run(inputs["input_ids"], inputs["attention_mask"])
    summary = {
        "model": encoder.name,
        "pretraining_tokens": encoder.tokens,
        "texts": len(texts),
        "cut": encoded.truncated,
        "tokens": int(statistics.token_counts.sum()),
        "layers": [_layer(statistics, index, encoder, fullest) for index in range(len(statistics.layers))],
    }
    return summary, statistics


def _layer(statistics: TreeStatistics, index: int, encoder: Encoder, fullest: int) -> dict:
    layer, counts, visits = statistics.layers[index], statistics.counts[index], statistics.visits(index)
    entropies, near_zero = statistics.entropy_sums[index], statistics.near_zero[index]
    first_nodes = [2**level - 1 for level in range(1, layer.depth)]  # of each level but the root
    decided = [int(nodes.sum()) for nodes in visits[:-1]]
    use = [evenness(nodes) for nodes in visits[1:]]
    nodes = torch.cat(visits[:-1], dim=1)  # (trees, nodes)
    return {
        "trees": layer.trees,
        "depth": layer.depth,
        "leaf_size": getattr(layer, "leaf_size", None),
        "dead_leaves": int((counts == 0).sum()),
        "leaf_counts": counts.tolist(),
        "used": [1.0, *(used for used, _ in use)],
        "evenness": [None, *(even for _, even in use)],
        "decision_entropy": _means(entropies.tensor_split(first_nodes, dim=1), decided),
        "near_zero": _means(near_zero.tensor_split(first_nodes, dim=1), decided),
        "node_entropy": [
            [total / count if count else None for total, count in zip(*tree, strict=True)]
            for tree in zip(entropies.tolist(), nodes.tolist(), strict=True)
        ],
        "mean_decision_entropy": (entropies.sum() / sum(decided)).item(),
        "mean_near_zero": (near_zero.sum() / sum(decided)).item(),
        "fullest": [describe_leaf(statistics, index, encoder, *place) for place in _fullest(counts, fullest)],
    }


def _means(levels: tuple[torch.Tensor, ...], counts: list[int]) -> list[float]:
    return [level.sum().item() / count for level, count in zip(levels, counts, strict=True)]


def _fullest(counts: torch.Tensor, most: int) -> list[tuple[int, int]]:
    """Tree and leaf of at most this many leaves with the most tokens, without dead ones."""
    order = counts.flatten().argsort(descending=True, stable=True)[:most].tolist()
    places = [divmod(place, counts.shape[1]) for place in order]
    return [(tree, leaf) for tree, leaf in places if counts[tree, leaf]]


def describe_leaf(statistics: TreeStatistics, index: int, encoder: Encoder, tree: int, leaf: int) -> dict:
    """The tokens at a leaf of a layer: an entry of `fullest`, as `summarize` gives it."""
    ids, counts = (values[:TOKENS_OF_A_LEAF] for values in statistics.tokens_at(index, tree, leaf))
    fractions = counts / statistics.token_counts[ids]
    tokens = encoder.tokenizer.convert_ids_to_tokens(ids.tolist())
    return {
        "tree": tree,
        "leaf": leaf,
        "tokens": int(statistics.counts[index][tree, leaf]),
        "top": [list(entry) for entry in zip(tokens, counts.tolist(), fractions.tolist(), strict=True)],
    }


def sizes(summary: dict) -> list[TreeSize]:
    """The size of each layer in a summary."""
    return [TreeSize(layer["trees"], layer["depth"], layer["leaf_size"]) for layer in summary["layers"]]


def trace(encoder: Encoder, text: str) -> dict:
    """Finds the leaf of every token of a text, which is cut if it is longer than the encoder's positions.

    Returns:
        JSON types: `text`, `tokens` (strings of the vocabulary) and `leaves` `(tokens, layers, trees)`.
    """
    longest = encoder.model.config.max_position_embeddings
    inputs = encoder.tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
    found = leaves_of_tokens(encoder.model, input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    tokens = encoder.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    leaves = [[layer[0, place].tolist() for layer in found] for place in range(len(tokens))]
    return {"text": text, "tokens": tokens, "leaves": leaves}
