"""The fast feedforward operator as it is defined: the other backends are tested against this one.

Every token walks each tree from the root, one level at a time. Each node on its path is a neuron. GeLU of the neuron's
pre-activation weights the node's output row in the result, and the sign of the pre-activation chooses the next node.
Arithmetic is in float32 or, for float64 arguments, in float64.

Source: Belcak & Wattenhofer, "Exponentially Faster Language Modelling", arXiv 2311.10770, algorithm 1. Every node,
including the leaves, is a GeLU neuron.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import gelu


def fff(x: Tensor, weight_in: Tensor, bias_in: Tensor | None, weight_out: Tensor) -> Tensor:
    """`ops.fff` for tokens `(tokens, hidden)`."""
    weight_out = at_least_float32(weight_out)
    tree = torch.arange(weight_out.shape[0], device=x.device)
    output = torch.zeros_like(x, dtype=weight_out.dtype)
    for node, pre_activation in _walk(x, weight_in, bias_in):
        output = output + (gelu(pre_activation).unsqueeze(-1) * weight_out[tree, node]).sum(1)
    return output.to(x.dtype)


def route(x: Tensor, weight_in: Tensor, bias_in: Tensor | None) -> Tensor:
    """`ops.route` for tokens `(tokens, hidden)`."""
    return torch.stack([node for node, _ in _walk(x, weight_in, bias_in)], dim=-1)


def _walk(x: Tensor, weight_in: Tensor, bias_in: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields, level by level, the node of each token and its pre-activation, both `(tokens, trees)`."""
    trees, nodes, _ = weight_in.shape
    x, weight_in = at_least_float32(x), at_least_float32(weight_in)
    bias_in = None if bias_in is None else at_least_float32(bias_in)
    tree = torch.arange(trees, device=x.device)
    node = torch.zeros(x.shape[0], trees, dtype=torch.long, device=x.device)
    for _ in range(nodes.bit_length()):
        pre_activation = (weight_in[tree, node] * x.unsqueeze(1)).sum(-1)
        if bias_in is not None:
            pre_activation = pre_activation + bias_in[tree, node]
        yield node, pre_activation
        node = 2 * node + 1 + (pre_activation > 0).long()


def at_least_float32(tensor: Tensor) -> Tensor:
    """Casts dtypes smaller than float32 to float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
