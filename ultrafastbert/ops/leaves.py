"""Leaves: small feedforward networks with GELU, of which each token uses one.

Tokens are sorted by leaf, and each leaf is multiplied with all of its tokens, in grouped products. Shapes are static;
where grouped products have a kernel, the host does not wait for the device. There are no second derivatives.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu

from ultrafastbert.ops.grouped import ALIGNMENT, grouped_mm


def leaf_feedforward(
    x: Tensor, leaf: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, bias_out: Tensor
) -> Tensor:
    """Evaluates on each token its leaf, Linear, GELU, Linear.

    Args:
        x: `(tokens, hidden)`.
        leaf: int64 `(tokens,)`, the leaf of each token.
        weight_in: `(leaves, size, hidden)`.
        bias_in: `(leaves, size)`.
        weight_out: `(leaves, size, output)`.
        bias_out: `(leaves, output)`.

    Returns:
        `(tokens, output)` in the dtype of `x`; under autocast in autocast's dtype, as for linear layers.
    """
    parameters = [weight_in, bias_in, weight_out, bias_out]
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, parameters = x.to(dtype), [parameter.to(dtype) for parameter in parameters]
        with torch.autocast(x.device.type, enabled=False):
            return _Leaves.apply(x, leaf, *parameters)
    return _Leaves.apply(x, leaf, *parameters)


class _Leaves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, leaf: Tensor, *parameters: Tensor) -> Tensor:
        weight_in, bias_in, weight_out, bias_out = parameters
        leaves = torch.arange(len(weight_in), device=x.device)
        leaf, order = leaf.sort(stable=True)
        ends = torch.searchsorted(leaf, leaves, right=True, out_int32=True)
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
