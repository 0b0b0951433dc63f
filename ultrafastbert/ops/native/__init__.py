"""The C++ operator (`native.cpp`) as a backend: CPU only, built and loaded when it is first asked for.

- `available` says, after trying, whether it can be used here; where it cannot, it warns once.
- The operators are PyTorch's own kind: kernels and schemas come with the library, what the compiler must know about
  shapes and the gradient's formula are registered below. So `torch.compile` and `torch.export` see one call.
- With gradients, `fff_with_path` keeps each token's leaf and pre-activations; the backward pass needs no more of the
  walk, and touches the nodes that were used. Gradients of weights are dense, and written once. There are no second
  derivatives.
- A program exported with this backend needs the library where it runs: call `available()` before loading it.
"""

import functools
import threading
import warnings

import torch


def fff(x, weight_in, bias_in, weight_out):
    _require()
    return torch.ops.ultrafastbert.fff.default(x, weight_in, bias_in, weight_out)


def route(x, weight_in, bias_in):
    _require()
    return torch.ops.ultrafastbert.route.default(x, weight_in, bias_in)


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether the operator can be used: loads it, which builds it at first, and warns once where that fails."""
    error = _load()
    if error:
        _warn(str(error))
    return error is None


@torch.compiler.assume_constant_result
def _require():
    error = _load()
    if error:
        raise error


@functools.cache
def _warn(message):
    warnings.warn(f"{message}\nUntil then the slower backends 'gather', 'blocked' and 'dense' are used.", stacklevel=4)


def _load():
    with _loading:
        return _load_once()


_loading = threading.Lock()  # operators may be registered only once


@functools.cache
def _load_once():
    # here, so that `python -m ultrafastbert.ops.native.build` runs a module that is not imported yet
    from ultrafastbert.ops.native import build

    if hasattr(torch.ops.ultrafastbert, "fff"):  # this module was reloaded, in a notebook for example
        return None
    try:
        build.load()
    except build.BuildError as error:
        return error
    _register()
    return None


def _register():
    """What PyTorch cannot see from the kernels: shapes, and the gradient."""
    register_fake = torch.library.register_fake

    @register_fake("ultrafastbert::fff")
    def _(x, weight_in, bias_in, weight_out):
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    @register_fake("ultrafastbert::fff_with_path")
    def _(x, weight_in, bias_in, weight_out):
        tokens, trees, levels = x.numel() // x.shape[-1], weight_in.shape[0], weight_in.shape[1].bit_length()
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        accumulator = torch.promote_types(x.dtype, torch.float32)
        leaf = x.new_empty(tokens, trees, dtype=torch.int32)
        return out, leaf, x.new_empty(tokens, trees, levels, dtype=accumulator)

    @register_fake("ultrafastbert::route")
    def _(x, weight_in, bias_in):
        tokens, trees, levels = x.numel() // x.shape[-1], weight_in.shape[0], weight_in.shape[1].bit_length()
        return x.new_empty(tokens, trees, levels, dtype=torch.int64)

    @register_fake("ultrafastbert::attention")
    def _(qkv, offsets, heads):
        return qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)

    @register_fake("ultrafastbert::linear_int8")
    def _(x, weight, weight_scale, dtype):
        return x.new_empty(*x.shape[:-1], weight_scale.shape[0], dtype=dtype)

    @register_fake("ultrafastbert::add_norm")
    def _(stream, update, weight, bias, eps, dtype):
        return torch.empty_like(stream, dtype=dtype)

    @register_fake("ultrafastbert::backward_tokens")
    def _(grad, weight_in, weight_out, leaf, pre_activation):
        grad_x = torch.empty_like(grad, memory_format=torch.contiguous_format)
        return grad_x, torch.empty_like(pre_activation), torch.empty_like(pre_activation)

    @register_fake("ultrafastbert::backward_weights")
    def _(grad, x, leaf, grad_pre_activation, activation):
        _, trees, levels = activation.shape
        nodes = 2**levels - 1
        weight = x.new_empty(trees, nodes, x.shape[-1])
        return weight, x.new_empty(trees, nodes), torch.empty_like(weight)

    def setup_context(ctx, inputs, output):
        x, weight_in, bias_in, weight_out = inputs
        _, leaf, pre_activation = output
        ctx.save_for_backward(x, weight_in, weight_out, leaf, pre_activation)
        ctx.biased = bias_in is not None

    def backward(ctx, grad, _grad_leaf, _grad_pre_activation):
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

    def no_second_derivative(ctx, *grads):
        raise NotImplementedError("backend 'native' has no second derivatives; use 'reference' or 'dense' for them")

    torch.library.register_autograd("ultrafastbert::fff_with_path", backward, setup_context=setup_context)
    for name in ("backward_tokens", "backward_weights"):
        torch.library.register_autograd(f"ultrafastbert::{name}", no_second_derivative)
