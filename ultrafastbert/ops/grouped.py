"""Grouped matrix products: several products of different numbers of rows in one call, for all dtypes and devices.

Where there is no kernel (see `has_kernel`), the products are a loop over the groups, whose ends the host waits for.
"""

import torch
from torch import Tensor
from torch.nn import functional

ALIGNMENT = 8  # the kernel needs operands whose rows are multiples of 16 bytes, 8 numbers of bfloat16


@torch.compiler.assume_constant_result
def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch has a kernel that reads the groups on the device: in bfloat16 on Hopper and Blackwell (10.x).

    The answer is also True for bfloat16 on a CPU, where PyTorch's operator is a loop. So tests on a CPU run the same
    code as CUDA does.
    """
    if device.type == "cuda" and (torch.version.hip or torch.cuda.get_device_capability(device)[0] not in (9, 10)):
        return False
    return dtype == torch.bfloat16 and device.type in ("cuda", "cpu", "meta")


def grouped_mm(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """Multiplies each group of rows, as `torch.nn.functional.grouped_mm` does.

    Args:
        a: `(rows, n)` or `(n, rows)`.
        b: `(groups, n, m)` if a is `(rows, n)`, otherwise `(rows, m)`.
        ends: int32 `(groups,)`, the row after the last one of each group, ascending.

    Returns:
        `(rows, m)`, each row times the matrix of its group, or `(groups, n, m)`, one product per group.
    """
    aligned = all(stride == 1 or stride % ALIGNMENT == 0 for t in (a, b) for stride in t.stride()[-2:])
    if not (aligned and has_kernel(a.device, a.dtype)):
        return looped_mm(a, b, ends)
    product = functional.grouped_mm(a, b, offs=ends)
    return zero_empty(product, ends) if product.dim() == 3 and product.is_cuda else product


def zero_empty(product: Tensor, ends: Tensor) -> Tensor:
    """Sets the products of empty groups to zero in place: Blackwell's kernel does not write them (pytorch#172439)."""
    empty = ends == torch.cat((ends.new_zeros(1), ends[:-1]))
    return product.masked_fill_(empty.view(-1, 1, 1), 0)


@torch.library.custom_op("ultrafastbert::grouped_mm", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def looped_mm(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """`grouped_mm` as a loop over the groups."""
    last = ends.tolist()
    groups = list(zip([0, *last[:-1]], last, strict=True))
    if b.dim() == 3:
        product = a.new_empty(a.shape[0], b.shape[2])
        for (start, end), block in zip(groups, b, strict=True):
            torch.mm(a[start:end], block, out=product[start:end])
    else:
        product = a.new_empty(len(groups), a.shape[0], b.shape[1])
        for (start, end), block in zip(groups, product, strict=True):
            torch.mm(a[:, start:end], b[start:end], out=block)
    return product


@looped_mm.register_fake
def _(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    if b.dim() == 3:
        return a.new_empty(a.shape[0], b.shape[2])
    return a.new_empty(ends.shape[0], a.shape[0], b.shape[1])
