"""Only the neurons on the paths: their weights are gathered level by level, the outputs added by `embedding_bag`.

Each token uses `depth + 1` neurons per tree, in plain PyTorch: this is the backend for CPUs without a compiler. It
reads the weights of a neuron once per token, so `dense` is faster for shallow trees and large batches.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding, embedding_bag, gelu


def fff(x: Tensor, weight_in: Tensor, bias_in: Tensor | None, weight_out: Tensor) -> Tensor:
    """`ops.fff` for tokens `(tokens, hidden)`."""
    rows, pre_activation = _walk(x, weight_in, bias_in)
    activation = gelu(pre_activation).flatten(1)
    return embedding_bag(rows.flatten(1), weight_out.flatten(0, 1), mode="sum", per_sample_weights=activation)


def route(x: Tensor, weight_in: Tensor, bias_in: Tensor | None) -> Tensor:
    """`ops.route` for tokens `(tokens, hidden)`."""
    rows, _ = _walk(x, weight_in, bias_in)
    trees, nodes, _ = weight_in.shape
    return rows - nodes * torch.arange(trees, device=x.device).unsqueeze(-1)


def _walk(x: Tensor, weight_in: Tensor, bias_in: Tensor | None) -> tuple[Tensor, Tensor]:
    """The nodes on each path, as int64 rows of the flattened trees, and pre-activations: `(tokens, trees, levels)`."""
    trees, nodes, _ = weight_in.shape
    weight_in = weight_in.flatten(0, 1)
    root = nodes * torch.arange(trees, device=x.device)
    row = root.expand(x.shape[0], trees)
    rows, pre_activations = [], []
    for _ in range(nodes.bit_length()):
        # (tokens, trees, hidden) @ (tokens, hidden, 1)
        pre_activation = torch.bmm(embedding(row, weight_in), x.unsqueeze(-1)).squeeze(-1)
        if bias_in is not None:
            pre_activation = pre_activation + embedding(row, bias_in.reshape(-1, 1)).squeeze(-1)
        rows.append(row)
        pre_activations.append(pre_activation)
        row = root + 2 * (row - root) + 1 + (pre_activation > 0)
    return torch.stack(rows, dim=-1), torch.stack(pre_activations, dim=-1)
