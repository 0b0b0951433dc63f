"""Trees as a fixed number of standard operators, for graphs that cannot contain the native one.

A level is a Gather of each token's node, a product and a comparison. Trees that are shallow remain dense products.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, gelu
from transformers import PreTrainedModel

from ultrafastbert import FFF, HardFFF

LEAST_DEPTH = 7
"""Below it, a product with all neurons of a tree is faster than to gather those on the path (`ops.choose_backend`)."""


def unroll(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model that computes the same, up to rounding, without operators of this package.

    Trees with leaves gather the leaf of each token, so memory grows by two leaves for each token.
    """
    unrolled = copy.deepcopy(model).eval().requires_grad_(False)
    for parent in list(unrolled.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, HardFFF):
                setattr(parent, name, UnrolledLeaves(layer))
            elif isinstance(layer, FFF) and layer.depth < LEAST_DEPTH:
                layer.backend = "dense"
            elif isinstance(layer, FFF):
                setattr(parent, name, UnrolledTrees(layer))
    return unrolled


class UnrolledTrees(nn.Module):
    """`FFF` with one Gather for each level: `(..., hidden)` -> `(..., hidden)`."""

    roots: Tensor

    def __init__(self, layer: FFF):
        super().__init__()
        trees, nodes, _ = layer.weight_in.shape
        self.levels = layer.depth + 1
        self.weight_in = nn.Parameter(layer.weight_in.flatten(0, 1))  # (trees * nodes, hidden)
        self.bias_in = None if layer.bias_in is None else nn.Parameter(layer.bias_in.reshape(-1, 1))
        self.weight_out = nn.Parameter(layer.weight_out.flatten(0, 1))
        self.register_buffer("roots", nodes * torch.arange(trees), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluates the trees."""
        tokens = x.flatten(0, -2)
        row = self.roots.expand(tokens.shape[0], -1)  # (tokens, trees), of the weights
        rows, activations = [], []
        for _ in range(self.levels):
            pre_activation = (embedding(row, self.weight_in) @ tokens.unsqueeze(-1)).squeeze(-1)
            if self.bias_in is not None:
                pre_activation = pre_activation + embedding(row, self.bias_in).squeeze(-1)
            rows.append(row)
            activations.append(gelu(pre_activation))
            row = 2 * row - self.roots + 1 + (pre_activation > 0)
        weights = embedding(torch.cat(rows, dim=-1), self.weight_out)  # (tokens, levels * trees, hidden)
        return (torch.cat(activations, dim=-1).unsqueeze(1) @ weights).view(x.shape)


class UnrolledLeaves(nn.Module):
    """`HardFFF` with one Gather for each level and those of the leaf: `(..., hidden)` -> `(..., hidden)`."""

    def __init__(self, layer: HardFFF):
        super().__init__()
        self.depth = layer.depth
        self.node_weight, self.node_bias = layer.node_weight_in, layer.node_bias_in
        self.leaf_weight_in, self.leaf_bias_in = layer.leaf_weight_in, layer.leaf_bias_in
        self.leaf_weight_out, self.leaf_bias_out = layer.leaf_weight_out, layer.leaf_bias_out

    def forward(self, x: Tensor) -> Tensor:
        """Finds the leaf of each token, and evaluates it."""
        tokens = x.flatten(0, -2).unsqueeze(-1)  # (tokens, hidden, 1)
        node = torch.zeros_like(tokens[:, 0, 0], dtype=torch.long)
        for _ in range(self.depth):
            decision = (self.node_weight[node] @ tokens).flatten() + self.node_bias[node].flatten()
            node = 2 * node + 1 + (decision > 0)
        leaf = node - (2**self.depth - 1)
        hidden = gelu((self.leaf_weight_in[leaf] @ tokens).squeeze(-1) + self.leaf_bias_in[leaf])  # (tokens, size)
        output = (hidden.unsqueeze(1) @ self.leaf_weight_out[leaf]).squeeze(1) + self.leaf_bias_out[leaf]
        return output.view(x.shape)
