"""The Triton kernels of trees. `triton.__init__` explains the whole and launches them.

Rows are pairs of a token and a tree, sorted by block, so that the rows of a block are adjacent. A *tile* is up to BM
rows of one block, a *chunk* up to CHUNK rows, whose weight gradients one program adds up. A block has WIDTH columns:
the CUT ancestors of a subtree, from the root, then the nodes of the subtree of SUB levels in heap order, then padding.

A row is evaluated on all columns of its block, because matrix units take no less; what is off its path is set to zero
before it can reach a result. Sums are in float32 and in a fixed order, without atomic operations.
"""

# Pointers and values of Triton have no Python types, and `and` of its values is not that of Python.
# ruff: noqa: ANN001, ANN201, ANN202, SIM102
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

import triton
import triton.language as tl


@triton.jit
def _columns(block, CUT: tl.constexpr, SUB: tl.constexpr, WIDTH: tl.constexpr):
    """The columns of a block: the node of each in all trees' nodes, its level in the subtree, whether it is a node."""
    column = tl.arange(0, WIDTH)
    nodes: tl.constexpr = 2 ** (CUT + SUB) - 1
    tree = (block // 2**CUT).to(tl.int64)
    root = block % 2**CUT + 2**CUT  # of the subtree, counted from 1
    below = column - CUT
    level = tl.zeros((WIDTH,), tl.int32)
    for i in tl.static_range(1, SUB):
        level += (below + 1 >= 2**i).to(tl.int32)
    ancestor = (root >> tl.maximum(CUT - column, 0)) - 1
    node = tl.where(column < CUT, ancestor, ((root - 1) << level) + below)
    is_node = column < CUT + 2**SUB - 1
    return tree * nodes + tl.where(is_node, node, 0), level, is_node


@triton.jit
def _gelu(x):
    return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _gelu_slope(x):
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def _on_path(turns, level, is_node, CUT: tl.constexpr, SUB: tl.constexpr, WIDTH: tl.constexpr):
    """`(BM, WIDTH)`: whether a column is on the path of a row; `turns` is its leaf in the subtree, counted from 1."""
    column = tl.arange(0, WIDTH)
    below = (turns[:, None] >> (SUB - 1 - level)[None, :]) - 1 == (column - CUT)[None, :]
    return ((column < CUT)[None, :] | below) & is_node[None, :]


@triton.jit
def _products(
    tokens,  # (tokens, HIDDEN)
    weight,  # (trees, nodes, HIDDEN)
    token,
    real,
    node,
    is_node,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`(BM, WIDTH)`, float32: the products of the rows of a tile with all columns of their block."""
    total = tl.zeros((BM, WIDTH), tl.float32)
    for start in range(0, HIDDEN, BK):
        k = start + tl.arange(0, BK)
        rows = tl.load(
            tokens + token[:, None] * HIDDEN + k[None, :], mask=real[:, None] & (k < HIDDEN)[None, :], other=0.0
        )
        columns = tl.load(
            weight + node[None, :] * HIDDEN + k[:, None], mask=is_node[None, :] & (k < HIDDEN)[:, None], other=0.0
        )
        total = tl.dot(rows, columns, total, input_precision=PRECISION)
    return total


@triton.jit
def _expand(
    values,
    weight,  # (trees, nodes, HIDDEN)
    result,  # (tokens * trees, HIDDEN)
    place,
    real,
    node,
    is_node,
    HIDDEN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes the products of `values`, (BM, WIDTH), with the rows of `weight` to `result`."""
    for start in range(0, HIDDEN, BK):
        k = start + tl.arange(0, BK)
        columns = tl.load(
            weight + node[:, None] * HIDDEN + k[None, :], mask=is_node[:, None] & (k < HIDDEN)[None, :], other=0.0
        )
        product = tl.dot(values, columns, input_precision=PRECISION).to(result.dtype.element_ty)
        tl.store(result + place[:, None] * HIDDEN + k[None, :], product, mask=real[:, None] & (k < HIDDEN)[None, :])


@triton.jit
def forward(
    x,  # (tokens, HIDDEN)
    weight_in,  # (trees, nodes, HIDDEN)
    bias_in,  # (trees, nodes), not read without HAS_BIAS
    weight_out,  # (trees, nodes, HIDDEN)
    places,  # (rows,) of each row: token * TREES + tree
    tile_block,  # (tiles,)
    tile_start,  # (tiles,)
    ends,  # (blocks,) the row after the last one of each block
    output,  # (tokens * TREES, HIDDEN), not written without OUTPUT
    pre_activation,  # (rows, WIDTH), not written without OUTPUT
    turns_taken,  # (rows,) the leaf of each row in its subtree, counted from 1
    TREES: tl.constexpr,
    HIDDEN: tl.constexpr,
    CUT: tl.constexpr,
    SUB: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    OUTPUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """Output, pre-activations and turns of one tile."""
    block = tl.load(tile_block + tl.program_id(0))
    start = tl.load(tile_start + tl.program_id(0))
    end = tl.load(ends + block)
    if start < end:
        row = start + tl.arange(0, BM)
        real = row < end
        place = tl.load(places + row, mask=real, other=0)
        token = place // TREES
        node, level, is_node = _columns(block, CUT, SUB, WIDTH)
        total = _products(x, weight_in, token, real, node, is_node, HIDDEN, WIDTH, BM, BK, PRECISION)
        if HAS_BIAS:
            total += tl.load(bias_in + node, mask=is_node, other=0.0).to(tl.float32)[None, :]
        rounded = total.to(x.dtype.element_ty)  # what the backward pass will see
        value = rounded.to(tl.float32)

        column = tl.arange(0, WIDTH)
        turns = tl.full((BM,), 1, tl.int32)
        for _ in tl.static_range(SUB - 1):
            here = column[None, :] == CUT - 1 + turns[:, None]
            decision = tl.sum(tl.where(here, value, 0.0), axis=1)
            turns = 2 * turns + (decision > 0).to(tl.int32)
        tl.store(turns_taken + row, turns.to(turns_taken.dtype.element_ty), mask=real)

        if OUTPUT:
            position = row[:, None].to(tl.int64) * WIDTH + column[None, :]
            tl.store(pre_activation + position, rounded, mask=real[:, None])
            on_path = _on_path(turns, level, is_node, CUT, SUB, WIDTH)
            activation = tl.where(on_path, _gelu(value), 0.0).to(x.dtype.element_ty)
            _expand(activation, weight_out, output, place, real, node, is_node, HIDDEN, BK, PRECISION)


@triton.jit
def backward_tokens(
    grad_output,  # (tokens, HIDDEN)
    weight_in,
    weight_out,
    places,
    tile_block,
    tile_start,
    ends,
    pre_activation,
    turns_taken,
    grad_x,  # (tokens * TREES, HIDDEN), not written without INPUT
    grad_pre_activation,  # (rows, WIDTH)
    activation,  # (rows, WIDTH)
    TREES: tl.constexpr,
    HIDDEN: tl.constexpr,
    CUT: tl.constexpr,
    SUB: tl.constexpr,
    WIDTH: tl.constexpr,
    INPUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """The gradient of the input, and what the gradients of the weights are made from, of one tile."""
    block = tl.load(tile_block + tl.program_id(0))
    start = tl.load(tile_start + tl.program_id(0))
    end = tl.load(ends + block)
    if start < end:
        row = start + tl.arange(0, BM)
        real = row < end
        place = tl.load(places + row, mask=real, other=0)
        token = place // TREES
        node, level, is_node = _columns(block, CUT, SUB, WIDTH)
        turns = tl.load(turns_taken + row, mask=real, other=1).to(tl.int32)
        on_path = _on_path(turns, level, is_node, CUT, SUB, WIDTH)
        position = row[:, None].to(tl.int64) * WIDTH + tl.arange(0, WIDTH)[None, :]
        value = tl.load(pre_activation + position, mask=real[:, None], other=0.0).to(tl.float32)
        on_tile = tl.where(on_path, _gelu(value), 0.0).to(activation.dtype.element_ty)
        tl.store(activation + position, on_tile, mask=real[:, None])

        total = _products(grad_output, weight_out, token, real, node, is_node, HIDDEN, WIDTH, BM, BK, PRECISION)
        gradient = tl.where(on_path, total * _gelu_slope(value), 0.0).to(grad_output.dtype.element_ty)
        tl.store(grad_pre_activation + position, gradient, mask=real[:, None])
        if INPUT:
            _expand(gradient, weight_in, grad_x, place, real, node, is_node, HIDDEN, BK, PRECISION)


@triton.jit
def backward_weights(
    values,  # (rows, WIDTH): activations, or gradients of pre-activations
    tokens,  # (tokens, HIDDEN): gradients of the output, or the input
    places,
    chunk_block,
    chunk_start,
    ends,
    weight_sums,  # (chunks, WIDTH, HIDDEN), float32
    bias_sums,  # (chunks, WIDTH), float32, not written without BIAS
    TREES: tl.constexpr,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """Adds up values times tokens over the rows of one chunk, for BK of the HIDDEN numbers of a token.

    The programs of a chunk follow each other, so that the values come from the cache for all but the first.
    """
    parts: tl.constexpr = (HIDDEN + BK - 1) // BK
    chunk, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    k = part * BK + tl.arange(0, BK)
    column = tl.arange(0, WIDTH)
    start = tl.load(chunk_start + chunk)
    end = tl.minimum(tl.load(ends + tl.load(chunk_block + chunk)), start + CHUNK)
    total = tl.zeros((WIDTH, BK), tl.float32)
    total_bias = tl.zeros((WIDTH,), tl.float32)
    for first in range(start, end, BM):
        row = first + tl.arange(0, BM)
        real = row < end
        token = tl.load(places + row, mask=real, other=0) // TREES
        position = row[None, :].to(tl.int64) * WIDTH + column[:, None]
        value = tl.load(values + position, mask=real[None, :], other=0.0)
        other = tl.load(
            tokens + token[:, None] * HIDDEN + k[None, :], mask=real[:, None] & (k < HIDDEN)[None, :], other=0.0
        )
        total = tl.dot(value, other, total, input_precision=PRECISION)
        if BIAS:
            total_bias += tl.sum(value.to(tl.float32), axis=1)
    position = (chunk.to(tl.int64) * WIDTH + column[:, None]) * HIDDEN + k[None, :]
    tl.store(weight_sums + position, total, mask=(k < HIDDEN)[None, :] & (column >= 0)[:, None])
    if BIAS:
        if part == 0:
            tl.store(bias_sums + chunk.to(tl.int64) * WIDTH + column, total_bias)


@triton.jit
def add_chunks(
    sums,  # (chunks, SIZE), float32
    last_chunk,  # (blocks,) the chunk after the last one of each block
    result,  # (blocks, SIZE)
    SIZE,
    BK: tl.constexpr,
):
    """Adds up the chunks of one block, for BK numbers."""
    block = tl.program_id(0)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    first = tl.load(last_chunk + block - 1, mask=block > 0, other=0)
    position = first.to(tl.int64) * SIZE + k
    total = tl.zeros((BK,), tl.float32)
    for _ in range(first, tl.load(last_chunk + block)):
        total += tl.load(sums + position, mask=k < SIZE, other=0.0)
        position += SIZE
    tl.store(result + block.to(tl.int64) * SIZE + k, total.to(result.dtype.element_ty), mask=k < SIZE)
