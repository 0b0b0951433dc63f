"""Layers of small feedforward networks (blocks), of which each token uses few: soft trees and mixtures of experts.

`grouped_feedforward` sorts the tokens by block and evaluates each block once for all of its tokens. It does not copy
weights for tokens, and blocks without tokens cost nothing. It consists of PyTorch operators and has derivatives of any
order. It reads the number of tokens per block on the host, so it waits for the device.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ultrafastbert.utils.validation import FRACTION, Rule, check, integer

MODULE_CLASS = Rule(
    lambda value: callable(value) and not isinstance(value, nn.Module), "a class of modules, such as torch.nn.ReLU"
)


class BlockLayer(nn.Module):
    """Base class of interchangeable layers: `(..., input_size)` -> `(..., output_size)`.

    Args:
        input_size, output_size: widths.
        activation: a class of elementwise modules, or a function that returns one.
        dropout: probability that a hidden neuron is dropped in training.

    Attributes:
        auxiliary_loss: scalar tensor, to be added to the loss: the weighted auxiliary losses of the last forward pass
            in training mode; zero if the layer has none.
        training_width, inference_width: number of neurons that compute the output, in training and of one token in
            inference.
        training_size, inference_size: the same, including the neurons that choose blocks.

    Raises:
        ValueError: an argument out of range; in the forward pass an x that is not `(..., input_size)`.

    Source of widths and sizes: arXiv 2308.14711, "Size and width".
    """

    training_width: int
    inference_width: int
    training_size: int
    inference_size: int
    shown: tuple[str, ...] = ()  # the attributes in `repr`

    def __init__(self, input_size: int, output_size: int, activation: Callable[[], nn.Module], dropout: float):
        super().__init__()
        check("input_size", input_size, integer(1))
        check("output_size", output_size, integer(1))
        check("dropout", dropout, FRACTION)
        check("activation", activation, MODULE_CLASS)
        self.input_size, self.output_size = input_size, output_size
        self.activation = activation()
        self.dropout = nn.Dropout(dropout)
        self.auxiliary_loss = torch.zeros(())

    def __getstate__(self) -> dict[str, Any]:
        # copy.deepcopy cannot copy a loss that is part of a graph
        return self.__dict__ | {"auxiliary_loss": self.auxiliary_loss.detach()}

    def extra_repr(self) -> str:
        """Returns the arguments for `repr`."""
        return ", ".join(f"{name}={getattr(self, name)}" for name in self.shown)

    def tokens(self, x: Tensor) -> Tensor:
        """Checks the shape and dtype of an input and flattens it: `(..., input_size)` -> `(tokens, input_size)`."""
        if x.dim() == 0 or x.shape[-1] != self.input_size:
            raise ValueError(f"x has shape {tuple(x.shape)}; it should be (..., {self.input_size})")
        if not x.is_floating_point():
            raise ValueError(f"x has dtype {x.dtype}; it should have a floating-point dtype")
        return x.reshape(-1, self.input_size)

    def activate(self, pre_activation: Tensor) -> Tensor:
        """Applies activation and dropout, elementwise."""
        return self.dropout(self.activation(pre_activation))


def grouped_feedforward(
    x: Tensor,
    block: Tensor,
    weight_in: Tensor,
    bias_in: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    activate: Callable[[Tensor], Tensor],
) -> Tensor:
    """Evaluates on each token its blocks, which are feedforward networks of equal size.

    Args:
        x: `(tokens, input)`.
        block: int64 `(tokens, k)`, the blocks that each token uses.
        weight_in: `(blocks, size, input)`.
        bias_in: `(blocks, size)`.
        weight_out: `(blocks, size, output)`.
        bias_out: `(blocks, output)`.
        activate: an elementwise function, applied to the hidden neurons.

    Returns:
        `(tokens, k, output)`, in the dtype of the output of a linear layer.
    """
    block_of_row, order = block.flatten().sort(stable=True)
    blocks, counts = (each.tolist() for each in block_of_row.unique_consecutive(return_counts=True))
    if not blocks:  # without tokens: an empty product has the right dtype and derivatives
        blocks, counts = [0], [0]
    weights = weight_in, bias_in, weight_out, bias_out
    if torch.is_grad_enabled():  # the gradient of each `weight[i]` would be as large as `weight`
        weights = [weight.unbind() for weight in weights]

    w_in, b_in, w_out, b_out = weights
    if len(blocks) == 1 and block.shape[1] == 1:  # usually a single token
        (i,) = blocks
        return torch.addmm(b_out[i], activate(linear(x, w_in[i], b_in[i])), w_out[i]).unsqueeze(1)
    rows = x[order // block.shape[1]].split(counts)
    hidden = torch.cat([linear(group, w_in[i], b_in[i]) for group, i in zip(rows, blocks, strict=True)])
    hidden = activate(hidden).split(counts)  # in one call: for few tokens a call takes longer than its arithmetic
    output = torch.cat([torch.addmm(b_out[i], group, w_out[i]) for group, i in zip(hidden, blocks, strict=True)])
    return torch.empty_like(output).index_copy(0, order, output).view(*block.shape, output.shape[1])


def init_blocks(weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, bias_out: Tensor) -> None:
    """Initialises blocks (shapes as in `grouped_feedforward`) like layers of `torch.nn.Linear`."""
    init_linear(weight_in, bias_in, fan_in=weight_in.shape[2])
    init_linear(weight_out, bias_out, fan_in=weight_out.shape[1])


def init_linear(weight: Tensor, bias: Tensor, fan_in: int) -> None:
    """Fills both uniformly between -1/sqrt(fan_in) and 1/sqrt(fan_in), like `torch.nn.Linear`."""
    for parameter in (weight, bias):
        nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5)
