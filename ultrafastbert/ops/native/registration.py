"""Registers what PyTorch cannot see from the kernels: the shapes of results, and the gradient of `fff_with_path`."""

from typing import Any

import torch
from torch import Tensor


def _fff(x: Tensor, weight_in: Tensor, bias_in: Tensor | None, weight_out: Tensor) -> Tensor:
    return _empty_like(x)


def _fff_with_path(
    x: Tensor, weight_in: Tensor, bias_in: Tensor | None, weight_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, trees, levels = _path_shape(x, weight_in)
    leaf = x.new_empty(tokens, trees, dtype=torch.int32)
    pre_activation = x.new_empty(tokens, trees, levels, dtype=torch.promote_types(x.dtype, torch.float32))
    return _empty_like(x), leaf, pre_activation


def _route(x: Tensor, weight_in: Tensor, bias_in: Tensor | None) -> Tensor:
    return x.new_empty(_path_shape(x, weight_in), dtype=torch.int64)


def _backward_tokens(
    grad: Tensor, weight_in: Tensor, weight_out: Tensor, leaf: Tensor, pre_activation: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_like(grad), torch.empty_like(pre_activation), torch.empty_like(pre_activation)


def _backward_weights(
    grad: Tensor, x: Tensor, leaf: Tensor, grad_pre_activation: Tensor, activation: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    _, trees, levels = activation.shape
    nodes = 2**levels - 1
    weight = x.new_empty(trees, nodes, x.shape[-1])
    return weight, x.new_empty(trees, nodes), torch.empty_like(weight)


def _attention(qkv: Tensor, offsets: Tensor, heads: int) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)


def _rotate(qkv: Tensor, cosine: Tensor, sine: Tensor, heads: int) -> None:
    return None


def _linear_int8(x: Tensor, weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight_scale.shape[0], dtype=dtype)


def _add_norm(
    stream: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    return torch.empty_like(stream, dtype=dtype)


SHAPES = {
    "fff": _fff,
    "fff_with_path": _fff_with_path,
    "route": _route,
    "backward_tokens": _backward_tokens,
    "backward_weights": _backward_weights,
    "attention": _attention,
    "rotate_": _rotate,
    "linear_int8": _linear_int8,
    "add_norm": _add_norm,
}
"""For each operator, a function of its arguments that returns tensors of the right shapes and dtypes."""


def register() -> None:
    """Registers everything with PyTorch; the library must be loaded."""
    for name, shapes in SHAPES.items():
        torch.library.register_fake(f"ultrafastbert::{name}", shapes)
    torch.library.register_autograd("ultrafastbert::fff_with_path", _backward, setup_context=_save_for_backward)
    for name in ("backward_tokens", "backward_weights"):
        torch.library.register_autograd(f"ultrafastbert::{name}", _no_second_derivative)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight_in, bias_in, weight_out = inputs
    _, leaf, pre_activation = output
    ctx.save_for_backward(x, weight_in, weight_out, leaf, pre_activation)
    ctx.biased = bias_in is not None


def _backward(ctx: Any, grad: Tensor, _grad_leaf: None, _grad_pre_activation: None) -> tuple[Tensor | None, ...]:
    x, weight_in, weight_out, leaf, pre_activation = ctx.saved_tensors
    operators = torch.ops.ultrafastbert
    _, *need_weights = ctx.needs_input_grad
    grad_x, grad_pre_activation, activation = operators.backward_tokens(
        grad, weight_in, weight_out, leaf, pre_activation
    )
    if not any(need_weights):
        return grad_x, None, None, None
    grad_in, grad_bias, grad_out = operators.backward_weights(grad, x, leaf, grad_pre_activation, activation)
    return grad_x, grad_in, grad_bias if ctx.biased else None, grad_out


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("backend 'native' has no second derivatives; use 'reference' or 'dense' for them")


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _path_shape(x: Tensor, weight_in: Tensor) -> tuple[int, int, int]:
    """Returns the number of tokens, trees and levels."""
    return x.numel() // x.shape[-1], weight_in.shape[0], weight_in.shape[1].bit_length()
