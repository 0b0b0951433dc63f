"""Registers what PyTorch cannot see from the kernels: the shapes of results, and gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _path_shape(x: Tensor, weight_in: Tensor) -> tuple[int, int, int]:
    """Returns the number of tokens, trees and levels."""
    return x.numel() // x.shape[-1], weight_in.shape[0], weight_in.shape[1].bit_length()


def _fff_with_path(x: Tensor, weight_in: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    path = _path_shape(x, weight_in)
    leaf = x.new_empty(path[:2], dtype=torch.int32)
    return _empty_like(x), leaf, x.new_empty(path, dtype=torch.promote_types(x.dtype, torch.float32))


def _backward_weights(grad: Tensor, x: Tensor, leaf: Tensor, *by_neuron: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _, trees, levels = by_neuron[0].shape
    weight = x.new_empty(trees, 2**levels - 1, x.shape[-1])
    return weight, x.new_empty(weight.shape[:2]), torch.empty_like(weight)


def _leaf(x: Tensor) -> Tensor:
    return x.new_empty(x.numel() // x.shape[-1], dtype=torch.int32)


def _leaves_with_path(x: Tensor, _nodes: Tensor, _bias: Tensor, weight_in: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    leaf = _leaf(x)
    shape = (leaf.shape[0], weight_in.shape[1])
    return _empty_like(x), leaf, x.new_empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))


def _cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    losses = logits.new_empty(labels.shape, dtype=torch.promote_types(logits.dtype, torch.float32))
    return losses, torch.empty_like(losses)


def _leaves_backward_weights(grad: Tensor, x: Tensor, leaf: Tensor, z: Tensor, _: Tensor, leaves: int) -> Any:
    weight = x.new_empty(leaves, z.shape[1], x.shape[-1])
    return weight, weight[..., 0].clone(), torch.empty_like(weight), weight[:, 0].clone()


SHAPES: dict[str, Callable[..., Any]] = {
    "fff": lambda x, *_: _empty_like(x),
    "fff_with_path": _fff_with_path,
    "route": lambda x, weight_in, _: x.new_empty(_path_shape(x, weight_in), dtype=torch.int64),
    "backward_tokens": lambda grad, _in, _out, _leaf, z: (_empty_like(grad), torch.empty_like(z), torch.empty_like(z)),
    "backward_weights": _backward_weights,
    "leaves": lambda x, *_: (_empty_like(x), _leaf(x)),
    "leaves_with_path": _leaves_with_path,
    "leaves_backward_tokens": lambda grad, _in, _out, _leaf, z: tuple(torch.empty_like(t) for t in (grad, z, z)),
    "leaves_backward_weights": _leaves_backward_weights,
    "cross_entropy": _cross_entropy,
    "cross_entropy_backward": lambda grad, logits, *_: _empty_like(logits),
    "attention": lambda qkv, *_: qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3),
    "rotate_": lambda *_: None,
    "linear_int8": lambda x, _, scale, dtype: x.new_empty(*x.shape[:-1], scale.shape[0], dtype=dtype),
    "add_norm": lambda stream, *options: torch.empty_like(stream, dtype=options[-1]),
}
"""For each operator, a function of its arguments that returns tensors of the right shapes and dtypes."""


def _on_one_device(shapes: Callable[..., Any]) -> Callable[..., Any]:
    """`shapes`, after a check. If one tensor of several is on `meta`, PyTorch takes this for the computation."""

    def checked(*arguments: Any) -> Any:
        devices = {str(argument.device) for argument in arguments if isinstance(argument, Tensor)}
        if len(devices) > 1:
            raise ValueError(f"the tensors are on devices {', '.join(sorted(devices))}; they should be on one device")
        return shapes(*arguments)

    return checked


def register() -> None:
    """Registers everything with PyTorch; the library must be loaded."""
    for name, shapes in SHAPES.items():
        torch.library.register_fake(f"ultrafastbert::{name}", _on_one_device(shapes))
    torch.library.register_autograd("ultrafastbert::fff_with_path", _backward, setup_context=_save_for_backward)
    torch.library.register_autograd(
        "ultrafastbert::leaves_with_path", _leaves_backward, setup_context=_save_for_leaves_backward
    )
    torch.library.register_autograd(
        "ultrafastbert::cross_entropy", _cross_entropy_backward, setup_context=_save_for_cross_entropy_backward
    )
    backward = ("backward_tokens", "backward_weights")
    for name in (*backward, *(f"leaves_{name}" for name in backward), "cross_entropy_backward"):
        torch.library.register_autograd(f"ultrafastbert::{name}", _no_second_derivative)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight_in, bias_in, weight_out = inputs
    _, leaf, pre_activation = output
    ctx.save_for_backward(x, weight_in, weight_out, leaf, pre_activation)
    ctx.biased = bias_in is not None


def _backward(ctx: Any, grad: Tensor, _grad_leaf: None, _grad_pre_activation: None) -> tuple[Tensor | None, ...]:
    x, weight_in, weight_out, leaf, pre_activation = ctx.saved_tensors
    operators = torch.ops.ultrafastbert
    grad_x, *by_neuron = operators.backward_tokens(grad, weight_in, weight_out, leaf, pre_activation)
    if not any(ctx.needs_input_grad[1:]):
        return grad_x, None, None, None
    grad_in, grad_bias, grad_out = operators.backward_weights(grad, x, leaf, *by_neuron)
    return grad_x, grad_in, grad_bias if ctx.biased else None, grad_out


def _save_for_leaves_backward(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    x, _, _, weight_in, _, weight_out, _ = inputs
    ctx.save_for_backward(x, weight_in, weight_out, *output[1:])


def _leaves_backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    x, weight_in, weight_out, leaf, pre_activation = ctx.saved_tensors
    operators = torch.ops.ultrafastbert
    grad = grad.contiguous()
    grad_x, *by_neuron = operators.leaves_backward_tokens(grad, weight_in, weight_out, leaf, pre_activation)
    if not any(ctx.needs_input_grad[3:]):
        return grad_x, *[None] * 6
    return grad_x, None, None, *operators.leaves_backward_weights(grad, x, leaf, *by_neuron, len(weight_in))


def _save_for_cross_entropy_backward(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _cross_entropy_backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor, None]:
    return torch.ops.ultrafastbert.cross_entropy_backward(grad, *ctx.saved_tensors), None


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("backend 'native' has no second derivatives; use 'reference' or 'dense' for them")
