"""Statistics of trees on text: the leaf of each token, how evenly leaves are used, and how hard the decisions are.

Notable:
- Hooks count the real tokens on their way through the layers; padding is ignored.
- How hard a decision is, is measured by the entropy of sigmoid(z), where z is the logit of its node: 0.69 nats (log 2)
  if both sides are equally likely, 0 if it is certain. A node's entropy is the mean over the tokens that reach it. The
  batch-mean entropy of arXiv 2308.14711, `SoftFFF.node_entropy`, is the mean over all inputs, as training mixes all
  paths.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ultrafastbert.inspection.regions import decision_logits
from ultrafastbert.layers.soft import decision_entropy
from ultrafastbert.layers.usage import LeafCounter, observe_inputs, tree_layers

NEAR_ZERO = 0.1
"""A decision is near zero if its logit is closer to 0 than this: rounding or a small change may turn it."""
NUMBERS = 2**24
"""Weights on paths that are gathered at a time."""


class TreeStatistics(LeafCounter):
    """A `LeafCounter` that also counts how hard the decisions of each node are, and which tokens reach each leaf.

    Attributes:
        counts: a tensor per layer of trees, int64 `(trees, leaves)`: tokens at each leaf.
        entropy_sums: the same, float64 `(trees, nodes)`: sums of the entropies of the decisions at each node. [nats]
        near_zero: the same, int64 `(trees, nodes)`: decisions at each node that were near zero.
        token_counts: int64 `(vocab,)`: how often each token occurred.

    Args:
        encoder: takes `input_ids` and `attention_mask`.
    """

    def __init__(self, encoder: PreTrainedModel):
        super().__init__(encoder)
        self.encoder = encoder
        self.entropy_sums = [torch.zeros_like(counts[:, 1:], dtype=torch.float64) for counts in self.counts]
        self.near_zero = [torch.zeros_like(counts[:, 1:]) for counts in self.counts]
        self.vocab_size = len(encoder.get_input_embeddings().get_parameter("weight"))
        self.token_counts = torch.zeros(self.vocab_size, dtype=torch.long)
        self._pairs = [_PairCounter() for _ in self.layers]

    @torch.no_grad()
    def run(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        """Runs the encoder on texts, both arguments `(texts, tokens)`, and counts their real tokens."""
        self._real = attention_mask.flatten() != 0
        self._tokens = input_ids.flatten()[self._real]
        self.token_counts += self._tokens.bincount(minlength=self.vocab_size)
        with self:
            self.encoder(input_ids=input_ids, attention_mask=attention_mask)

    def _observe(self, index: int, x: torch.Tensor) -> None:
        layer, x = self.layers[index], x.flatten(0, -2)[self._real]
        nodes = 2**layer.depth - 1
        tree = torch.arange(layer.trees)
        for some in torch.arange(len(x)).split(max(1, NUMBERS // (layer.trees * x.shape[-1]))):
            path = layer.route(x[some])  # (tokens, trees, depth + 1)
            leaf = path[..., -1] - nodes
            self._count(index, leaf)
            place = tree * 2**layer.depth + leaf  # (tokens, trees)
            self._pairs[index].add(place * self.vocab_size + self._tokens[some, None])
            logit = decision_logits(layer, x[some], path)
            node = (tree[:, None] * nodes + path[..., :-1]).flatten()
            self.entropy_sums[index].view(-1).index_add_(0, node, decision_entropy(logit).flatten().double())
            self.near_zero[index].view(-1).index_add_(0, node, (logit.abs() < NEAR_ZERO).flatten().long())

    def visits(self, index: int) -> list[torch.Tensor]:
        """Tokens at each node of a layer, level by level from the root: int64 `(trees, 2^level)` each."""
        levels = [self.counts[index]]
        while levels[0].shape[1] > 1:
            levels.insert(0, levels[0].unflatten(1, (-1, 2)).sum(-1))
        return levels

    def tokens_at(self, index: int, tree: int, leaf: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The token ids that reached a leaf of a layer, and their counts, the most frequent first."""
        first = (tree * self.counts[index].shape[1] + leaf) * self.vocab_size
        pairs, counts = self._pairs[index].between(first, first + self.vocab_size)
        order = counts.argsort(descending=True, stable=True)
        return (pairs - first)[order], counts[order]


class _PairCounter:
    """Counts int64 keys. Memory grows with the different keys, not with their number."""

    WAITING = 2**22

    def __init__(self):
        self.keys, self.counts = torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
        self._waiting: list[torch.Tensor] = []

    def add(self, keys: torch.Tensor) -> None:
        self._waiting.append(keys.flatten())
        if sum(map(len, self._waiting)) > self.WAITING:
            self._merge()

    def between(self, first: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys in [first, end), in order, and their counts."""
        self._merge()
        some = slice(*torch.searchsorted(self.keys, torch.tensor([first, end])).tolist())
        return self.keys[some], self.counts[some]

    def _merge(self) -> None:
        if not self._waiting:
            return
        keys, counts = torch.cat(self._waiting).unique(return_counts=True)
        self.keys, place = torch.cat([self.keys, keys]).unique(return_inverse=True)
        self.counts = torch.zeros_like(self.keys).index_add_(0, place, torch.cat([self.counts, counts]))
        self._waiting = []


def leaves_of_tokens(model: nn.Module, **inputs: Any) -> list[torch.Tensor]:
    """The leaf of every token in each layer of trees: int64 `(texts, tokens, trees)` per layer.

    Args:
        model: an encoder, with a head or without.
        inputs: from the tokenizer, tensors `(texts, tokens)`. Padding gets leaves too.
    """
    return [leaf for leaf, _ in decisions_of_tokens(model, **inputs)]


@torch.no_grad()
def decisions_of_tokens(model: nn.Module, **inputs: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The path of every token in each layer of trees, by its leaf and the logits of its decisions.

    Args:
        model: an encoder, with a head or without.
        inputs: from the tokenizer, tensors `(texts, tokens)`. Padding gets paths too.

    Returns:
        For each layer, int64 `(texts, tokens, trees)`, the leaves, and `(texts, tokens, trees, depth)`, the logits. A
        token goes to the right where the logit is greater than 0, up to rounding.
    """
    layers = tree_layers(model)
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def observe(index: int, x: torch.Tensor) -> None:
        layer, shape = layers[index], x.shape[:-1]
        path = layer.route(x.flatten(0, -2))  # (tokens, trees, depth + 1)
        leaf = path[..., -1] - (2**layer.depth - 1)
        logits = decision_logits(layer, x.flatten(0, -2), path)
        found[index] = leaf.unflatten(0, shape), logits.unflatten(0, shape)

    with observe_inputs(layers, observe):
        model(**inputs)
    return [found[index] for index in range(len(layers))]
