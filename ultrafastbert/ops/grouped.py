"""Grouped matrix products: several products of different numbers of rows in one call, for all dtypes and devices.

Where PyTorch has no kernel for them (see `has_kernel`), an accelerator multiplies tiles: pieces of groups, padded to
one size, in a batched product, so that shapes are static and the host waits for nothing. A CPU loops over the groups.
"""

import torch
from torch import Tensor
from torch.nn import functional

ALIGNMENT = 8  # the kernel needs operands whose rows are multiples of 16 bytes, 8 numbers of bfloat16
MAX_GROUPS = 1023  # of the kernel


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
    if not (aligned and len(ends) <= MAX_GROUPS and has_kernel(a.device, a.dtype)):
        return looped_mm(a, b, ends) if a.device.type in ("cpu", "meta") else tiled_mm(a, b, ends)
    product = functional.grouped_mm(a, b, offs=ends)
    return zero_empty(product, ends) if product.dim() == 3 and product.is_cuda else product


def zero_empty(product: Tensor, ends: Tensor) -> Tensor:
    """Sets the products of empty groups to zero in place: Blackwell's kernel does not write them (pytorch#172439)."""
    empty = ends == torch.cat((ends.new_zeros(1), ends[:-1]))
    return product.masked_fill_(empty.view(-1, 1, 1), 0)


def pieces(ends: Tensor, rows: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Divides the rows of each group into pieces of at most `size`.

    Args:
        ends: int32 `(groups,)`, the row after the last one of each group, ascending; the last is `rows`.
        rows: the number of rows.
        size: of a piece.

    Returns:
        int32: the group of each piece and its first row, `(pieces,)`, where pieces is the most that there can be and
        those not needed start after the end of their group; and the piece after the last one of each group,
        `(groups,)`.
    """
    starts = torch.cat((ends.new_zeros(1), ends[:-1]))
    last = ((ends - starts + size - 1) // size).cumsum(0, dtype=torch.int32)
    first = torch.cat((last.new_zeros(1), last[:-1]))
    piece = torch.arange(rows // size + min(len(ends), rows), dtype=torch.int32, device=ends.device)
    group = torch.searchsorted(last, piece, right=True, out_int32=True).clamp(max=len(ends) - 1)
    start = starts[group] + size * (piece - first[group])
    return group, torch.where(piece < last[-1], start, rows), last


def tiled_mm(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """`grouped_mm` as a batched product of tiles.

    Half a tile is padding in each group, on average; so tiles are smaller the fewer rows a group has.
    """
    groups, rows = len(ends), a.shape[0] if b.dim() == 3 else a.shape[1]
    size = max(16, min(128, 1 << (rows // groups // 4).bit_length()))
    group, start, last = pieces(ends, rows, size)
    place = start.unsqueeze(1) + torch.arange(size, dtype=torch.int32, device=ends.device)  # (tiles, size)
    is_row = (place < ends[group].unsqueeze(1)).unsqueeze(2)
    place = place.clamp(max=rows - 1)
    first = torch.cat((last.new_zeros(1), last[:-1]))
    if b.dim() == 3:
        starts = torch.cat((ends.new_zeros(1), ends[:-1]))
        row = torch.arange(rows, dtype=torch.int32, device=ends.device)
        of_row = torch.searchsorted(ends, row, right=True, out_int32=True)
        product = torch.bmm(a[place], b[group]).flatten(0, 1)
        return product[first[of_row] * size + row - starts[of_row]]
    product = torch.bmm(torch.where(is_row, a.T[place], 0).transpose(1, 2), torch.where(is_row, b[place], 0))
    product = product.to(torch.promote_types(product.dtype, torch.float32)).flatten(1)  # adds in its own dtype
    sums = torch.segment_reduce(product, "sum", lengths=last - first, axis=0, unsafe=True)
    return sums.to(a.dtype).view(groups, a.shape[0], b.shape[1])


def _looped_mm(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
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


def _looped_shape(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    if b.dim() == 3:
        return a.new_empty(a.shape[0], b.shape[2])
    return a.new_empty(ends.shape[0], a.shape[0], b.shape[1])


if hasattr(torch.ops.ultrafastbert, "grouped_mm"):
    # Models from the Hub bring copies of this file. An operator that is defined anew leaves the callers of the earlier
    # one with freed memory.
    looped_mm = torch.ops.ultrafastbert.grouped_mm
else:
    looped_mm = torch.library.custom_op(
        "ultrafastbert::grouped_mm", _looped_mm, mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
    )
    looped_mm.register_fake(_looped_shape)
