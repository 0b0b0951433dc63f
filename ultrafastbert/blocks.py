"""Feedforward layers made of blocks, of which a token uses few: what trees of leaves and mixtures of experts share.

`grouped_feedforward` sorts tokens by block, so that a block is one product for all its tokens: weights are read where
they are, never copied a token, and blocks that no token chose cost nothing. It is made of PyTorch's own operators, so
it has derivatives of any order, and how many tokens a block gets is read on the host.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import linear


class BlockLayer(nn.Module):
    """Base of the layers `(..., input_size) -> (..., output_size)` that can stand in for each other.

    Attributes:
        auxiliary_loss: scalar tensor, what the last forward pass in training mode asks of the loss besides the
            prediction, weights included; zero where there is nothing.
        training_width, inference_width: how many neurons produce output, in training and for a token in inference.
        training_size, inference_size: how many neurons there are, and are used for a token, those that choose blocks
            included.

    Source of the widths and sizes: arXiv 2308.14711, "Size and width".
    """

    training_width: int
    inference_width: int
    training_size: int
    inference_size: int

    def __init__(self, activation: Callable[[], nn.Module], dropout: float, **sizes: int):
        super().__init__()
        for name, size in sizes.items():
            check_whole(name, size, least=1)
            setattr(self, name, size)
        check_share("dropout", dropout)
        if isinstance(activation, nn.Module) or not callable(activation):
            raise ValueError(f"activation is {activation!r}; it should be a class of modules, such as torch.nn.ReLU")
        self.activation = activation()
        self.dropout = nn.Dropout(dropout)
        self.auxiliary_loss = torch.zeros(())

    def __getstate__(self):
        # A loss is part of a graph, which copy.deepcopy refuses to copy.
        return self.__dict__ | {"auxiliary_loss": self.auxiliary_loss.detach()}

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        """`(..., input_size)` -> `(tokens, input_size)`, checked."""
        if x.dim() == 0 or x.shape[-1] != self.input_size:
            raise ValueError(f"x has shape {tuple(x.shape)}; it should be (..., {self.input_size})")
        if not x.is_floating_point():
            raise ValueError(f"x is of dtype {x.dtype}; it should be of a floating-point dtype")
        return x.reshape(-1, self.input_size)

    def activate(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.activation(hidden))


def grouped_feedforward(
    x: torch.Tensor,
    block: torch.Tensor,
    weight_in: torch.Tensor,
    bias_in: torch.Tensor,
    weight_out: torch.Tensor,
    bias_out: torch.Tensor,
    activate: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Evaluates on every token the blocks that it chose.

    Args:
        x: `(tokens, input)`.
        block: int64 `(tokens, k)`, the blocks of each token.
        weight_in: `(blocks, size, input)`.
        bias_in: `(blocks, size)`.
        weight_out: `(blocks, size, output)`.
        bias_out: `(blocks, output)`.
        activate: elementwise, applied to `(rows, size)`.

    Returns:
        `(tokens, k, output)`, the outputs of the blocks, in the dtype that linear layers give.
    """
    k = block.shape[1]
    chosen, order = block.flatten().sort(stable=True)
    chosen, counts = (each.tolist() for each in chosen.unique_consecutive(return_counts=True))
    weights = weight_in, bias_in, weight_out, bias_out
    if torch.is_grad_enabled():
        # The gradient of `weight[i]` would be as large as `weight`, once a block.
        weights = [weight.unbind() for weight in weights]
    outputs = []
    for i, rows in zip(chosen, x[order // k].split(counts) if chosen else (), strict=True):
        w_in, b_in, w_out, b_out = (weight[i] for weight in weights)
        outputs.append(torch.addmm(b_out, activate(linear(rows, w_in, b_in)), w_out))
    if not outputs:
        return linear(x, weight_out.new_zeros(weight_out.shape[2], x.shape[1])).unsqueeze(1).expand(-1, k, -1)
    output = torch.cat(outputs)
    return torch.empty_like(output).index_copy(0, order, output).unflatten(0, (-1, k))


def init_blocks(weight_in: nn.Parameter, bias_in: nn.Parameter, weight_out: nn.Parameter, bias_out: nn.Parameter):
    """Initialises blocks, shaped as in `grouped_feedforward`, each as `torch.nn.Linear` initialises its layers."""
    for weight, bias, fan_in in (
        (weight_in, bias_in, weight_in.shape[2]),
        (weight_out, bias_out, weight_out.shape[1]),
    ):
        nn.init.uniform_(weight, -(fan_in**-0.5), fan_in**-0.5)
        nn.init.uniform_(bias, -(fan_in**-0.5), fan_in**-0.5)


def check_whole(name: str, value: int, least: int, most: int | None = None) -> None:
    """Raises ValueError unless `value` is a whole number in the limits."""
    if not isinstance(value, int) or value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} is {value}; it should be a whole number, {limits}")


def check_share(name: str, value: float) -> None:
    """Raises ValueError unless `value` is a number from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; it should be a number from 0 to 1")
