"""Rotary positions of queries and keys in training on a CPU, by the native operator.

In PyTorch's operators they are a dozen passes over queries and keys in each direction. The operator is one, in place
on a copy that training in bfloat16 makes anyway, and its gradient is the rotation backwards.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ultrafastbert.ops import native

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def rotates(qkv: Tensor) -> bool:
    """Whether `rotate_queries_and_keys` takes these; a compiler is left to fuse PyTorch's operators."""
    return qkv.is_cpu and qkv.dtype in DTYPES and not torch.compiler.is_compiling() and native.available()


def rotate_queries_and_keys(qkv: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turns the pairs (i, head_dim / 2 + i) of queries and keys by the angles of their positions.

    Args:
        qkv: `(batch, seq, 3, heads, head_dim)` of float32, bfloat16 or float16 on a CPU, head_dim even.
        cosine: `(batch or 1, seq, head_dim)` float32, equal halves.
        sine: the same.

    Returns:
        As `qkv`, with the same values. There are no second derivatives.

    Source: arXiv 2104.09864, section 3.4.2.
    """
    batch, seq, _, heads, head_dim = qkv.shape
    half = head_dim // 2
    tables = (table[..., :half].expand(batch, seq, half).reshape(batch * seq, half) for table in (cosine, sine))
    return _Rotation.apply(qkv, *tables, heads)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cosine: Tensor, sine: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        ctx.heads = heads
        return _rotate(qkv, cosine, sine, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cosine, sine = ctx.saved_tensors
        return _rotate(grad, cosine, -sine, ctx.heads), None, None, None


def _rotate(qkv: Tensor, cosine: Tensor, sine: Tensor, heads: int) -> Tensor:
    rotated = qkv.clone(memory_format=torch.contiguous_format)
    tokens, half = cosine.shape
    torch.ops.ultrafastbert.rotate_(rotated.view(tokens, 6 * heads * half), cosine, sine, heads)
    return rotated
