"""All neurons of all trees in two dense products, with a mask that keeps those on the paths.

The cost is that of a dense layer of `trees * nodes` neurons, so this backend is for shallow trees; at depth 0 it *is*
the dense layer. It needs only matrix products and elementwise operations, so it runs on any device.
"""

import torch
from torch import Tensor
from torch.nn.functional import gelu


def fff(x: Tensor, weight_in: Tensor, bias_in: Tensor | None, weight_out: Tensor) -> Tensor:
    """`ops.fff` for tokens `(tokens, hidden)`."""
    pre_activation = _pre_activations(x, weight_in, bias_in)
    activation = gelu(pre_activation)  # (tokens, trees, nodes)
    if activation.shape[-1] > 1:  # at depth 0 every neuron is on the path
        activation = activation.masked_fill(~torch.cat(_level_masks(pre_activation), dim=-1), 0)
    return activation.flatten(1) @ weight_out.flatten(0, 1)


def route(x: Tensor, weight_in: Tensor, bias_in: Tensor | None) -> Tensor:
    """`ops.route` for tokens `(tokens, hidden)`."""
    masks = _level_masks(_pre_activations(x, weight_in, bias_in))
    # argmax is not defined for bool. The first node of level l has index 2^l - 1, the width of the level minus 1.
    return torch.stack([mask.byte().argmax(-1) + mask.shape[-1] - 1 for mask in masks], dim=-1)


def _pre_activations(x: Tensor, weight_in: Tensor, bias_in: Tensor | None) -> Tensor:
    """Returns `(tokens, trees, nodes)`."""
    product = x @ weight_in.flatten(0, 1).T
    if bias_in is not None:
        product = product + bias_in.flatten()
    return product.unflatten(-1, weight_in.shape[:2])


def _level_masks(pre_activation: Tensor) -> list[Tensor]:
    """Returns for each level the bool mask `(tokens, trees, 2^level)` of the node on the path."""
    mask = torch.ones_like(pre_activation[..., :1], dtype=torch.bool)
    masks = [mask]
    while 2 * mask.shape[-1] <= pre_activation.shape[-1]:
        width = mask.shape[-1]
        right = pre_activation[..., width - 1 : 2 * width - 1] > 0
        mask = torch.stack((mask & ~right, mask & right), dim=-1).flatten(-2)  # siblings are adjacent
        masks.append(mask)
    return masks
