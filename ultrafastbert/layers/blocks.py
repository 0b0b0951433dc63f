"""Feedforward layers made of blocks, of which a token uses few: what trees of leaves and mixtures of experts share.

`grouped_feedforward` sorts tokens by block, so that a block is evaluated once for all its tokens. Weights are read
where they are, never copied for a token, and blocks that no token chose cost nothing. It is made of PyTorch's own
operators, so it has derivatives of any order; the host waits to learn how many tokens each block gets.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import linear

from ultrafastbert.utils.validation import FRACTION, check, integer


class BlockLayer(nn.Module):
    """Base of the layers `(..., input_size)` -> `(..., output_size)` that can stand in for each other.

    Attributes:
        auxiliary_loss: scalar tensor: what the last forward pass in training mode adds to the loss of the prediction,
            its weight included; zero where there is nothing to add.
        training_width, inference_width: how many neurons make the output, in training and of a token in inference.
        training_size, inference_size: how many neurons there are, and how many a token uses in inference, when those
            that choose blocks are counted too.

    Source of widths and sizes: arXiv 2308.14711, "Size and width".
    """

    training_width: int
    inference_width: int
    training_size: int
    inference_size: int

    def __init__(self, input_size: int, output_size: int, activation: Callable[[], nn.Module], dropout: float):
        super().__init__()
        check("input_size", input_size, integer(1))
        check("output_size", output_size, integer(1))
        check("dropout", dropout, FRACTION)
        if isinstance(activation, nn.Module) or not callable(activation):
            raise ValueError(f"activation is {activation!r}; it should be a class of modules, such as torch.nn.ReLU")
        self.input_size, self.output_size = input_size, output_size
        self.activation = activation()
        self.dropout = nn.Dropout(dropout)
        self.auxiliary_loss = torch.zeros(())

    def __getstate__(self):
        # The loss is part of a graph, and copy.deepcopy refuses to copy that.
        return self.__dict__ | {"auxiliary_loss": self.auxiliary_loss.detach()}

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        """`(..., input_size)` -> `(tokens, input_size)`; a ValueError says what is wrong with an x of another kind."""
        if x.dim() == 0 or x.shape[-1] != self.input_size:
            raise ValueError(f"x has shape {tuple(x.shape)}; it should be (..., {self.input_size})")
        if not x.is_floating_point():
            raise ValueError(f"x is of dtype {x.dtype}; it should be of a floating-point dtype")
        return x.reshape(-1, self.input_size)

    def activate(self, pre_activation: torch.Tensor) -> torch.Tensor:
        """Activation and dropout, elementwise."""
        return self.dropout(self.activation(pre_activation))


def grouped_feedforward(
    x: torch.Tensor,
    block: torch.Tensor,
    weight_in: torch.Tensor,
    bias_in: torch.Tensor,
    weight_out: torch.Tensor,
    bias_out: torch.Tensor,
    activate: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Evaluates each token's blocks, which are feedforward networks of one size.

    Args:
        x: `(tokens, input)`.
        block: int64 `(tokens, k)`, which blocks a token uses.
        weight_in: `(blocks, size, input)`.
        bias_in: `(blocks, size)`.
        weight_out: `(blocks, size, output)`.
        bias_out: `(blocks, output)`.
        activate: elementwise, applied to the hidden neurons.

    Returns:
        `(tokens, k, output)`, in the dtype that a linear layer gives.
    """
    block_of_row, order = block.flatten().sort(stable=True)
    blocks, counts = (each.tolist() for each in block_of_row.unique_consecutive(return_counts=True))
    if not blocks:  # no tokens: a product without rows has the right dtype and derivatives
        blocks, counts = [0], [0]
    weights = weight_in, bias_in, weight_out, bias_out
    if torch.is_grad_enabled():  # each `weight[i]` would have a gradient as large as `weight`
        weights = [weight.unbind() for weight in weights]

    w_in, b_in, w_out, b_out = weights
    if len(blocks) == 1 and block.shape[1] == 1:  # a single token, as a rule
        (i,) = blocks
        return torch.addmm(b_out[i], activate(linear(x, w_in[i], b_in[i])), w_out[i]).unsqueeze(1)
    rows = x[order // block.shape[1]].split(counts)
    hidden = torch.cat([linear(group, w_in[i], b_in[i]) for group, i in zip(rows, blocks, strict=True)])
    hidden = activate(hidden).split(counts)  # at once: for a few tokens a call takes longer than its arithmetic
    output = torch.cat([torch.addmm(b_out[i], group, w_out[i]) for group, i in zip(hidden, blocks, strict=True)])
    return torch.empty_like(output).index_copy(0, order, output).view(*block.shape, output.shape[1])


def init_blocks(
    weight_in: nn.Parameter, bias_in: nn.Parameter, weight_out: nn.Parameter, bias_out: nn.Parameter
) -> None:
    """Initialises blocks, of shapes as in `grouped_feedforward`, as `torch.nn.Linear` initialises its layers."""
    init_linear(weight_in, bias_in, fan_in=weight_in.shape[2])
    init_linear(weight_out, bias_out, fan_in=weight_out.shape[1])


def init_linear(weight: nn.Parameter, bias: nn.Parameter, fan_in: int) -> None:
    """Fills both uniformly between -1/sqrt(fan_in) and 1/sqrt(fan_in), as `torch.nn.Linear` has it."""
    for parameter in (weight, bias):
        nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5)
