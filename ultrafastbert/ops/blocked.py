"""Trees as a few dense products: tokens that enter the same subtree are multiplied with it together.

- A tree of L levels is cut at level a, about L / 2. A product with the top 2^a - 1 nodes and a walk over it tell which
  of the 2^a subtrees a token enters. They only decide, so the backward pass has no part in them.
- Tokens are sorted by subtree. The a nodes above a subtree lie on the path of every token in it, so a block, the
  subtree's nodes and these ancestors, holds all that its tokens need: one grouped product gives the pre-activations,
  one the output, and the backward pass is four more of these shapes. At 1x11: 64 + 72 columns of input weights and 72
  of output weights, where `dense` has 4095 of each.
- Several trees are one grouped product as well, in which each token appears once a tree.
- Shapes are static and, with the kernel that `has_kernel` describes, the host waits for nothing: `torch.compile` and
  CUDA graphs capture it. There are no second derivatives.

Weights stay in heap order and are copied into blocks at every call. For a 1x11 tree of width 768 in bfloat16 that
reads and writes 27 MB, 8 us of an H100's memory bandwidth, where a pass over 65,536 tokens reads 100 MB.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import gelu, grouped_mm

from ultrafastbert.ops import dense

ALIGNMENT = 8  # rows of the operands of a grouped product are multiples of 16 bytes, so 8 numbers of bfloat16
SORTING = 250  # what sorting the tokens and bringing them back costs, in columns: it pays from depth 7 on


def fff(x, weight_in, bias_in, weight_out):
    if not _pays(x, weight_in):
        return dense.fff(x, weight_in, bias_in, weight_out)
    return _Blocked.apply(x, weight_in, bias_in, weight_out)


def route(x, weight_in, bias_in):
    if not _pays(x, weight_in):
        return dense.route(x, weight_in, bias_in)
    trees, nodes, _ = weight_in.shape
    levels = nodes.bit_length()
    cut = _cut(levels)
    order = _sort(x, weight_in, bias_in, cut)
    *_, turns = _pre_activations(x, weight_in, bias_in, order, cut)
    to_subtree = order.block % 2**cut + 2**cut  # in binary: a one, and the turns above
    turns = turns + ((to_subtree - 1) << (levels - 1 - cut))  # whose one gives way to them
    return _nodes_on_path(turns, levels)[order.row]  # (tokens, trees, levels)


def _pays(x, weight_in):
    nodes = weight_in.shape[1]
    levels = nodes.bit_length()
    return x.shape[0] > 0 and levels > 1 and _columns(levels, _cut(levels)) + SORTING < 2 * nodes


def _cut(levels):
    return min(range(1, levels), key=lambda cut: _columns(levels, cut))


def _columns(levels, cut):
    """How many rows of weights a token is multiplied with when a tree is cut there."""
    return 2**cut + 2 * _block_width(levels, cut)


def _block_width(levels, cut):
    used = cut + 2 ** (levels - cut) - 1
    return used + -used % ALIGNMENT


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight_in, bias_in, weight_out):
        ctx.levels = levels = weight_in.shape[1].bit_length()
        cut = _cut(levels)
        order = _sort(x, weight_in, bias_in, cut)
        rows, blocks_in, pre_activation, turns = _pre_activations(x, weight_in, bias_in, order, cut)
        columns = _path_columns(turns, cut, levels)
        pre_activation = pre_activation.gather(1, columns)
        blocks_out = _blocks(weight_out, cut)
        activation = _on_path(gelu(pre_activation), columns, blocks_out.shape[1])
        output = _to_tokens(_grouped_mm(activation, blocks_out, order.ends), order)
        ctx.save_for_backward(rows, blocks_in, blocks_out, turns, pre_activation, *order)
        return output

    @staticmethod
    def backward(ctx, grad_output):
        if torch.is_grad_enabled():  # `create_graph` was asked for
            raise NotImplementedError(
                "backend 'blocked' has no second derivatives; use 'reference' or 'dense' for them"
            )
        rows, blocks_in, blocks_out, turns, pre_activation, *order = ctx.saved_tensors
        order, levels, cut, width = _Order(*order), ctx.levels, _cut(ctx.levels), blocks_out.shape[1]
        columns = _path_columns(turns, cut, levels)
        need_x, need_in, need_bias, need_out = ctx.needs_input_grad
        grad_x = grad_in = grad_bias = grad_out = None

        grad_rows = _to_rows(grad_output, order)
        if need_out:
            activation = _on_path(gelu(pre_activation), columns, width)
            grad_out = _heap(_grouped_mm(activation.T, grad_rows, order.ends), order, cut, levels)
        if need_x or need_in or need_bias:
            grad_activation = _grouped_mm(grad_rows, blocks_out.transpose(1, 2), order.ends)
            del grad_rows  # as large as the tokens, as what the next product makes
            grad = torch.ops.aten.gelu_backward(grad_activation.gather(1, columns), pre_activation)
            grad = _on_path(grad, columns, width)
        if need_x:
            grad_x = _to_tokens(_grouped_mm(grad, blocks_in, order.ends), order)
        if need_in:
            grad_in = _heap(_grouped_mm(grad.T, rows, order.ends), order, cut, levels)
        if need_bias:
            ones = grad.new_ones(grad.shape[0], ALIGNMENT)  # a product adds up in float32, and always alike
            grad_bias = _heap(_grouped_mm(grad.T, ones, order.ends), order, cut, levels)[..., 0]
        return grad_x, grad_in, grad_bias, grad_out


class _Order(NamedTuple):
    """Tokens sorted by block. There is a row for each token and tree; there are trees * 2^cut blocks."""

    token: torch.Tensor  # (rows,) which token a row is
    block: torch.Tensor  # (rows,) which block it is multiplied with, ascending
    row: torch.Tensor  # (tokens, trees) the inverse
    ends: torch.Tensor  # (blocks,) int32, the row after the last of each block


def _sort(x, weight_in, bias_in, cut):
    trees = weight_in.shape[0]
    top = 2**cut  # one more than there are nodes, so that rows are aligned; the walk does not look at it
    pre_activation = x @ weight_in[:, :top].flatten(0, 1).T
    if bias_in is not None:
        pre_activation = pre_activation + bias_in[:, :top].flatten()
    turns = _walk(pre_activation.view(-1, trees, top), cut)  # (tokens, trees)
    block = turns - top + top * torch.arange(trees, device=x.device)
    blocks = torch.arange(trees * top, dtype=torch.int16 if trees * top <= 2**15 else torch.int32, device=x.device)
    block, index = block.to(blocks.dtype).flatten().sort(stable=True)
    row = torch.empty_like(index).scatter_(0, index, torch.arange(index.shape[0], device=x.device))
    ends = torch.searchsorted(block, blocks, right=True, out_int32=True)
    return _Order(index // trees, block.long(), row.view(-1, trees), ends)


def _pre_activations(x, weight_in, bias_in, order, cut):
    """The rows, the blocks of `weight_in`, their products (rows, width), and the turns of each row in its subtree."""
    steps = weight_in.shape[1].bit_length() - 1 - cut
    rows, blocks = _to_rows(x, order), _blocks(weight_in, cut)
    pre_activation = _grouped_mm(rows, blocks.transpose(1, 2), order.ends)
    if bias_in is not None:
        pre_activation = pre_activation + _blocks(bias_in, cut)[order.block]
    return rows, blocks, pre_activation, _walk(pre_activation[:, cut:], steps)


def _walk(pre_activation, steps):
    """(..., nodes in heap order) -> int64 (...), the turns taken in so many steps from the root.

    In binary it is a one and then a digit a step, one for right: the index of the node reached, counted from 1.
    """
    node = torch.ones_like(pre_activation[..., :1], dtype=torch.long)
    for _ in range(steps):
        node = 2 * node + (pre_activation.gather(-1, node - 1) > 0)
    return node.squeeze(-1)


def _nodes_on_path(turns, levels):
    """(...) -> (..., levels): heap indices from the root to where the turns end."""
    return (turns.unsqueeze(-1) >> torch.arange(levels - 1, -1, -1, device=turns.device)) - 1


def _path_columns(turns, cut, levels):
    """The columns of its block that each row uses, (rows, levels): the ancestors, then the path in the subtree."""
    ancestors = torch.arange(cut, device=turns.device).expand(turns.shape[0], cut)
    return torch.cat((ancestors, cut + _nodes_on_path(turns, levels - cut)), dim=1)


def _on_path(values, columns, width):
    """(rows, levels) -> (rows, width), zero off the path."""
    return values.new_zeros(values.shape[0], width).scatter_(1, columns, values)


def _to_rows(tokens, order):
    return tokens.index_select(0, order.token)


def _to_tokens(rows, order):
    """The adjoint of `_to_rows`: adds up the rows of a token."""
    tokens, trees = order.row.shape
    rows = rows.index_select(0, order.row.flatten())
    return rows if trees == 1 else rows.view(tokens, trees, -1).sum(1, dtype=rows.dtype)


def _blocks(heap, cut):
    """(trees, nodes, ...) -> (trees * 2^cut, width, ...): ancestors, subtree in heap order, padding of zeros."""
    trees, nodes, *rest = heap.shape
    levels, subtrees = nodes.bit_length(), 2**cut
    roots = subtrees + torch.arange(subtrees, device=heap.device)
    ancestors = heap[:, _nodes_on_path(roots, cut + 1)[:, :cut]]
    subtree = heap[:, subtrees - 1 :].split([subtrees * 2**level for level in range(levels - cut)], dim=1)
    padding = heap.new_zeros(()).expand(
        trees, subtrees, _block_width(levels, cut) - cut - 2 ** (levels - cut) + 1, *rest
    )
    parts = [part.reshape(trees, subtrees, -1, *rest) for part in subtree]
    return torch.cat((ancestors, *parts, padding), dim=2).flatten(0, 1)


def _heap(blocks, order, cut, levels):
    """The adjoint of `_blocks`: adds up what the blocks have of each node."""
    trees, (width, *rest) = order.row.shape[1], blocks.shape[1:]
    sizes = [1] * cut + [2**level for level in range(levels - cut)]
    parts = blocks.view(trees, 2**cut, width, *rest).split([*sizes, width - sum(sizes)], dim=2)
    ancestors = [  # the subtrees below a node lie side by side
        part.reshape(trees, 2**level, -1, *rest).sum(2, dtype=blocks.dtype) for level, part in enumerate(parts[:cut])
    ]
    return torch.cat(ancestors + [part.flatten(1, 2) for part in parts[cut:-1]], dim=1)


@torch.compiler.assume_constant_result
def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether grouped products have a kernel there that needs no host: for bfloat16, on Hopper and Blackwell (10.x).

    Elsewhere the products are a loop over the blocks, which reads on the host where they end. On a CPU bfloat16
    takes PyTorch's own such loop, and with it the same way through this module as on CUDA.
    """
    if dtype != torch.bfloat16 or device.type not in ("cuda", "cpu", "meta"):
        return False
    if device.type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(device)[0] in (9, 10)
    return True


def _grouped_mm(a, b, ends):
    """`torch.nn.functional.grouped_mm`, for all dtypes, strides and devices.

    (rows, n) with a block (n, m) for each group of rows -> (rows, m); (n, rows) with (rows, m) -> (blocks, n, m).
    """
    aligned = all(stride == 1 or stride % ALIGNMENT == 0 for t in (a, b) for stride in t.stride()[-2:])
    if not (aligned and has_kernel(a.device, a.dtype)):
        return _looped_mm(a, b, ends)
    product = grouped_mm(a, b, offs=ends)
    return _zero_empty(product, ends) if product.dim() == 3 and product.is_cuda else product


def _zero_empty(product, ends):
    """Zeros for the blocks without rows, where Blackwell's kernel leaves what was in memory (pytorch#172439)."""
    empty = ends == torch.cat((ends.new_zeros(1), ends[:-1]))
    return product.masked_fill_(empty.view(-1, 1, 1), 0)


@torch.library.custom_op("ultrafastbert::grouped_mm", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _looped_mm(a: torch.Tensor, b: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    ends = ends.tolist()
    groups = list(zip([0, *ends[:-1]], ends, strict=True))
    if b.dim() == 3:
        product = a.new_empty(a.shape[0], b.shape[2])
        for (start, end), block in zip(groups, b, strict=True):
            torch.mm(a[start:end], block, out=product[start:end])
    else:
        product = a.new_empty(len(groups), a.shape[0], b.shape[1])
        for (start, end), block in zip(groups, product, strict=True):
            torch.mm(a[:, start:end], b[start:end], out=block)
    return product


@_looped_mm.register_fake
def _(a, b, ends):
    if b.dim() == 3:
        return a.new_empty(a.shape[0], b.shape[2])
    return a.new_empty(ends.shape[0], a.shape[0], b.shape[1])
