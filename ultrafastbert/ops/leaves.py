"""Trees whose nodes only decide and whose leaves are feedforward networks with GELU: each token uses one leaf.

On a CPU the native operator computes them. Otherwise tokens are sorted by leaf, and each leaf is multiplied with all
of its tokens, in grouped products: shapes are static, and where these products have a kernel, the host does not wait
for the device. There are no second derivatives, and decisions have no gradient.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu

from ultrafastbert.ops import native
from ultrafastbert.ops.checks import autocast_dtype, check_devices, check_dtypes, check_layouts
from ultrafastbert.ops.grouped import ALIGNMENT, grouped_mm


def leaves(
    x: Tensor,
    node_weight: Tensor,
    node_bias: Tensor,
    weight_in: Tensor,
    bias_in: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
) -> tuple[Tensor, Tensor]:
    """Finds the leaf of each token and evaluates it: Linear, GELU, Linear.

    Args:
        x: `(tokens, hidden)`, floating point.
        node_weight: `(leaves - 1, 1, hidden)`, in heap order: node i has the children 2i+1 and 2i+2.
        node_bias: `(leaves - 1, 1)`; a token goes right where its product with the node plus this is positive.
        weight_in: `(leaves, size, hidden)`; the number of leaves is a power of two.
        bias_in: `(leaves, size)`.
        weight_out: `(leaves, size, hidden)`.
        bias_out: `(leaves, hidden)`.

    Returns:
        The output `(tokens, hidden)`, in the dtype of `x`, under autocast in autocast's dtype, as for linear layers;
        and the leaf of each token, an integer `(tokens,)`.

    Raises:
        ValueError: a shape, device or layout that does not fit; the message names the argument.
        TypeError: dtypes that differ or are not floating point.
    """
    arguments = (x, node_weight, node_bias, weight_in, bias_in, weight_out, bias_out)
    if (dtype := autocast_dtype(x)) is not None:
        with torch.autocast(x.device.type, enabled=False):
            _check(*arguments, same_dtype=False)
            return leaves(*(argument.to(dtype) for argument in arguments))
    if x.is_cpu and native.available():
        try:
            if torch.is_grad_enabled() and any(argument.requires_grad for argument in arguments):
                return torch.ops.ultrafastbert.leaves_with_path(*arguments)[:2]
            return torch.ops.ultrafastbert.leaves(*arguments)
        except (RuntimeError, ValueError, TypeError):
            _check(*arguments)  # raises the error of `leaves` if an argument is wrong
            raise
    _check(*arguments)
    leaf = find_leaves(x, node_weight.squeeze(1), node_bias.squeeze(1))
    return _Leaves.apply(x, leaf, *arguments[3:]), leaf


def _check(*arguments: Tensor, same_dtype: bool = True) -> None:
    names = ("x", "node_weight", "node_bias", "weight_in", "bias_in", "weight_out", "bias_out")
    named: dict[str, Tensor] = dict(zip(names, arguments, strict=True))
    check_layouts(named)
    shape = tuple(named["weight_in"].shape)
    if len(shape) != 3 or 0 in shape or shape[0] & (shape[0] - 1):
        raise ValueError(
            f"weight_in has shape {shape}; it should be (leaves, size, hidden), each at least 1, leaves a power of two"
        )
    count, size, hidden = shape
    x = named["x"]
    if x.dim() != 2 or x.shape[1] != hidden:
        raise ValueError(f"x has shape {tuple(x.shape)}; it should be (tokens, {hidden}), as wide as weight_in")
    expected = {"node_weight": (count - 1, 1, hidden), "node_bias": (count - 1, 1), "bias_in": (count, size)}
    expected |= {"weight_out": shape, "bias_out": (count, hidden)}
    for name, shape in expected.items():
        if tuple(named[name].shape) != shape:
            raise ValueError(f"{name} has shape {tuple(named[name].shape)}; it should be {shape}")
    check_devices(named)
    if same_dtype:
        check_dtypes(named)


@torch.no_grad()
def find_leaves(x: Tensor, node_weight: Tensor, node_bias: Tensor) -> Tensor:
    """The leaf of each token, int64 `(tokens,)`: a product with all nodes and a walk through the result.

    Args:
        x: `(tokens, hidden)`.
        node_weight: `(nodes, hidden)`.
        node_bias: `(nodes,)`.
    """
    right = x @ node_weight.T + node_bias > 0
    node = torch.zeros(len(x), 1, dtype=torch.long, device=x.device)
    for _ in range(len(node_weight).bit_length()):
        node = 2 * node + 1 + right.gather(1, node)
    return node.squeeze(1) - len(node_weight)


class _Leaves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, leaf: Tensor, *parameters: Tensor) -> Tensor:
        weight_in, bias_in, weight_out, bias_out = parameters
        leaf, order = leaf.sort(stable=True)
        ends = torch.searchsorted(leaf, torch.arange(len(weight_in), device=x.device), right=True, out_int32=True)
        rows = x.index_select(0, order)
        pre_activation = grouped_mm(rows, weight_in.transpose(1, 2), ends) + bias_in.index_select(0, leaf)
        output = grouped_mm(gelu(pre_activation), weight_out, ends) + bias_out.index_select(0, leaf)
        ctx.save_for_backward(rows, pre_activation, weight_in, weight_out, order, ends)
        return torch.empty_like(output).index_copy_(0, order, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # with `create_graph`
            raise NotImplementedError("the leaves of HardFFF have no second derivatives; SoftFFF has")
        rows, pre_activation, weight_in, weight_out, order, ends = ctx.saved_tensors
        need_x, _, *need_parameters = ctx.needs_input_grad
        grad = grad.index_select(0, order)
        grad_activation = grouped_mm(grad, weight_out.transpose(1, 2), ends)
        grad_pre_activation = torch.ops.aten.gelu_backward(grad_activation, pre_activation)
        grad_x = None
        if need_x:
            grad_rows = grouped_mm(grad_pre_activation, weight_in, ends)
            grad_x = torch.empty_like(grad_rows).index_copy_(0, order, grad_rows)
        if not any(need_parameters):
            return grad_x, None, None, None, None, None
        ones = rows.new_ones(len(rows), ALIGNMENT)  # a product with ones is a sum whose order is fixed
        return (
            grad_x,
            None,
            grouped_mm(grad_pre_activation.T, rows, ends),
            grouped_mm(ones.T, grad_pre_activation, ends)[:, 0],
            grouped_mm(gelu(pre_activation).T, grad, ends),
            grouped_mm(ones.T, grad, ends)[:, 0],
        )
