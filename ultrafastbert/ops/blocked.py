"""Trees as a few dense products: tokens that enter the same subtree are multiplied with it together.

- A tree of L levels is cut at level a, about L / 2, into a top of 2^a - 1 nodes and 2^a subtrees. A product with the
  top nodes and a walk through them find the subtree that each token enters. The backward pass does not need this
  product, because decisions have no gradient.
- Tokens are sorted by subtree. A block is a subtree together with the a nodes above it, which are on the path of every
  token in the subtree. So a block has all neurons that its tokens use: one grouped product gives the pre-activations
  and one the output. The backward pass is four more grouped products. At 1x11 a token is multiplied with 64 + 72 rows
  of input weights and 72 of output weights, where `dense` has 4095 of each.
- With several trees, each token appears once per tree in the same grouped products.
- Shapes are static. Where grouped products have a kernel, the host does not wait for the device, and `torch.compile`
  and CUDA graphs capture the operator. It has no second derivatives.

Weights stay in heap order and are copied into blocks in every call. For a 1x11 tree of width 768 in bfloat16 that
reads and writes 27 MB, 8 us of an H100's memory bandwidth, where a pass over 65,536 tokens reads 100 MB.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu

from ultrafastbert.ops import dense
from ultrafastbert.ops.grouped import ALIGNMENT, grouped_mm

SORTING = 250  # the cost of sorting the tokens and restoring their order, in rows of weights: it pays from depth 7 on


def fff(x: Tensor, weight_in: Tensor, bias_in: Tensor | None, weight_out: Tensor) -> Tensor:
    """`ops.fff` for tokens `(tokens, hidden)`."""
    if not pays(x, weight_in):
        return dense.fff(x, weight_in, bias_in, weight_out)
    return _Blocked.apply(x, weight_in, bias_in, weight_out)


def route(x: Tensor, weight_in: Tensor, bias_in: Tensor | None) -> Tensor:
    """`ops.route` for tokens `(tokens, hidden)`."""
    if not pays(x, weight_in):
        return dense.route(x, weight_in, bias_in)
    levels = weight_in.shape[1].bit_length()
    cut = _cut(levels)
    order = sort(x, weight_in, bias_in, cut)
    *_, turns = _pre_activations(x, weight_in, bias_in, order, cut)
    return path_through(order.block, turns, cut, levels)[order.row]  # (tokens, trees, levels)


def pays(x: Tensor, weight_in: Tensor) -> bool:
    """Whether sorting the tokens takes less time than it saves, compared with `dense`."""
    nodes = weight_in.shape[1]
    levels = nodes.bit_length()
    return x.shape[0] > 0 and levels > 1 and _columns(levels, _cut(levels)) + SORTING < 2 * nodes


def _cut(levels: int) -> int:
    return min(range(1, levels), key=lambda cut: _columns(levels, cut))


def _columns(levels: int, cut: int) -> int:
    """The rows of weights that a token is multiplied with if a tree is cut at this level."""
    return 2**cut + 2 * _block_width(levels, cut)


def _block_width(levels: int, cut: int) -> int:
    """The rows of a block: ancestors and subtree, padded to a multiple of `ALIGNMENT`."""
    nodes = cut + 2 ** (levels - cut) - 1
    return nodes + -nodes % ALIGNMENT


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_in: Tensor, bias_in: Tensor | None, weight_out: Tensor) -> Tensor:
        ctx.levels = levels = weight_in.shape[1].bit_length()
        cut = _cut(levels)
        order = sort(x, weight_in, bias_in, cut)
        rows, blocks_in, pre_activation, turns = _pre_activations(x, weight_in, bias_in, order, cut)
        columns = _path_columns(turns, cut, levels)
        pre_activation = pre_activation.gather(1, columns)
        blocks_out = _blocks(weight_out, cut)
        activation = _on_path(gelu(pre_activation), columns, blocks_out.shape[1])
        output = _to_tokens(grouped_mm(activation, blocks_out, order.ends), order)
        ctx.save_for_backward(rows, blocks_in, blocks_out, turns, pre_activation, *order)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # with `create_graph`
            raise NotImplementedError(
                "backend 'blocked' has no second derivatives; use 'reference' or 'dense' for them"
            )
        rows, blocks_in, blocks_out, turns, pre_activation, *order = ctx.saved_tensors
        order, levels, cut, width = Order(*order), ctx.levels, _cut(ctx.levels), blocks_out.shape[1]
        trees = order.row.shape[1]
        columns = _path_columns(turns, cut, levels)
        need_x, need_in, need_bias, need_out = ctx.needs_input_grad
        grad_x = grad_in = grad_bias = grad_out = None

        grad_rows = grad_output.index_select(0, order.token)
        if need_out:
            activation = _on_path(gelu(pre_activation), columns, width)
            grad_out = heap(grouped_mm(activation.T, grad_rows, order.ends), trees, cut, levels)
        if not (need_x or need_in or need_bias):
            return None, None, None, grad_out
        grad_activation = grouped_mm(grad_rows, blocks_out.transpose(1, 2), order.ends)
        del grad_rows  # frees memory for the next product, which is as large
        grad = torch.ops.aten.gelu_backward(grad_activation.gather(1, columns), pre_activation)
        grad = _on_path(grad, columns, width)
        if need_x:
            grad_x = _to_tokens(grouped_mm(grad, blocks_in, order.ends), order)
        if need_in:
            grad_in = heap(grouped_mm(grad.T, rows, order.ends), trees, cut, levels)
        if need_bias:
            ones = grad.new_ones(grad.shape[0], ALIGNMENT)  # a product is deterministic and adds in float32
            grad_bias = heap(grouped_mm(grad.T, ones, order.ends), trees, cut, levels)[..., 0]
        return grad_x, grad_in, grad_bias, grad_out


def _pre_activations(
    x: Tensor, weight_in: Tensor, bias_in: Tensor | None, order: "Order", cut: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the rows, the blocks of `weight_in`, their products `(rows, width)`, and the turns in the subtrees."""
    steps = weight_in.shape[1].bit_length() - 1 - cut
    rows, blocks = x.index_select(0, order.token), _blocks(weight_in, cut)
    pre_activation = grouped_mm(rows, blocks.transpose(1, 2), order.ends)
    if bias_in is not None:
        pre_activation = pre_activation + _blocks(bias_in, cut)[order.block]
    return rows, blocks, pre_activation, _walk(pre_activation[:, cut:], steps)


class Order(NamedTuple):
    """Tokens sorted by block. There is one row for each token and tree, and `trees * 2^cut` blocks."""

    token: Tensor  # (rows,) the token of each row
    block: Tensor  # (rows,) the block of each row, ascending
    row: Tensor  # (tokens, trees) the inverse of `token`
    ends: Tensor  # (blocks,) int32, the row after the last one of each block


def sort(x: Tensor, weight_in: Tensor, bias_in: Tensor | None, cut: int) -> Order:
    """Walks all tokens through the nodes above the cut, and sorts them by where they arrive."""
    trees = weight_in.shape[0]
    top = 2**cut  # one node more than the top has, so that rows are aligned; the walk ignores it
    pre_activation = x @ weight_in[:, :top].flatten(0, 1).T
    if bias_in is not None:
        pre_activation = pre_activation + bias_in[:, :top].flatten()
    turns = _walk(pre_activation.view(-1, trees, top), cut)  # (tokens, trees)
    block = turns - top + top * torch.arange(trees, device=x.device)
    blocks = torch.arange(trees * top, dtype=torch.int16 if trees * top <= 2**15 else torch.int32, device=x.device)
    block, index = block.to(blocks.dtype).flatten().sort(stable=True)
    row = torch.empty_like(index).scatter_(0, index, torch.arange(index.shape[0], device=x.device))
    ends = torch.searchsorted(block, blocks, right=True, out_int32=True)
    return Order(index // trees, block.long(), row.view(-1, trees), ends)


def _to_tokens(rows: Tensor, order: Order) -> Tensor:
    """Adds the rows of each token: the adjoint of `tokens.index_select(0, order.token)`."""
    tokens, trees = order.row.shape
    rows = rows.index_select(0, order.row.flatten())
    return rows if trees == 1 else rows.view(tokens, trees, -1).sum(1, dtype=rows.dtype)


def _walk(pre_activation: Tensor, steps: int) -> Tensor:
    """`(..., nodes in heap order)` -> int64 `(...)`, the turns of the first `steps` decisions.

    In binary, a one is followed by one digit per step, 1 for right. This is the index of the node, counted from 1.
    """
    node = torch.ones_like(pre_activation[..., :1], dtype=torch.long)
    for _ in range(steps):
        node = 2 * node + (pre_activation.gather(-1, node - 1) > 0)
    return node.squeeze(-1)


def _nodes_on_path(turns: Tensor, levels: int) -> Tensor:
    """`(...)` -> `(..., levels)`: heap indices from the root to the node that the turns lead to."""
    return (turns.unsqueeze(-1) >> torch.arange(levels - 1, -1, -1, device=turns.device)) - 1


def path_through(block: Tensor, turns: Tensor, cut: int, levels: int) -> Tensor:
    """The path of each row, int64 `(rows, levels)`, from its block and its turns below the cut."""
    to_subtree = block % 2**cut + 2**cut  # the turns above the subtree, after the leading one
    turns = turns + ((to_subtree - 1) << (levels - 1 - cut))  # they replace the leading one of the turns below
    return _nodes_on_path(turns, levels)


def _path_columns(turns: Tensor, cut: int, levels: int) -> Tensor:
    """The neurons of its block that each row uses, `(rows, levels)`: the ancestors, then the path in the subtree."""
    ancestors = torch.arange(cut, device=turns.device).expand(turns.shape[0], cut)
    return torch.cat((ancestors, cut + _nodes_on_path(turns, levels - cut)), dim=1)


def _on_path(values: Tensor, columns: Tensor, width: int) -> Tensor:
    """`(rows, levels)` -> `(rows, width)`, zero off the path."""
    return values.new_zeros(values.shape[0], width).scatter_(1, columns, values)


def _blocks(heap: Tensor, cut: int) -> Tensor:
    """`(trees, nodes, ...)` -> `(trees * 2^cut, width, ...)`: ancestors, subtree in heap order, padding of zeros."""
    trees, nodes, *rest = heap.shape
    levels, subtrees = nodes.bit_length(), 2**cut
    roots = subtrees + torch.arange(subtrees, device=heap.device)
    ancestors = heap[:, _nodes_on_path(roots, cut + 1)[:, :cut]]
    subtree = heap[:, subtrees - 1 :].split([subtrees * 2**level for level in range(levels - cut)], dim=1)
    padding = _block_width(levels, cut) - cut - 2 ** (levels - cut) + 1
    parts = [part.reshape(trees, subtrees, -1, *rest) for part in subtree]
    zeros = heap.new_zeros(()).expand(trees, subtrees, padding, *rest)
    return torch.cat((ancestors, *parts, zeros), dim=2).flatten(0, 1)


def heap(blocks: Tensor, trees: int, cut: int, levels: int) -> Tensor:
    """The adjoint of `_blocks`: adds the rows of each node in all blocks."""
    width, *rest = blocks.shape[1:]
    sizes = [1] * cut + [2**level for level in range(levels - cut)]
    parts = blocks.view(trees, 2**cut, width, *rest).split([*sizes, width - sum(sizes)], dim=2)
    ancestors = [  # the subtrees below a node are adjacent
        part.reshape(trees, 2**level, -1, *rest).sum(2, dtype=blocks.dtype) for level, part in enumerate(parts[:cut])
    ]
    return torch.cat(ancestors + [part.flatten(1, 2) for part in parts[cut:-1]], dim=1)
