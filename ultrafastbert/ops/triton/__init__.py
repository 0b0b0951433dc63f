"""Trees on a GPU as fused Triton kernels: forward, gradient of the input, gradients of the weights.

As in `blocked`, a tree is cut into a top and subtrees, tokens are sorted by the subtree that they enter, and a block
is a subtree with the nodes above it. What `blocked` does in seven products with copies in between, a kernel does at
once: it reads the tokens of a tile by their indices and the nodes by theirs, walks, applies GELU and writes the
outputs to their places, so that tokens and weights are not copied.

    forward             read a token, write its output and, for the backward pass, its WIDTH pre-activations
    backward_tokens     read the output's gradient, write the input's
    backward_weights    read tokens and gradients once more; sums over chunks of rows, so that several programs share
                        a block that gets many tokens
    add_chunks          add the sums of each block's chunks

Nothing is added atomically, so that results are the same each time; shapes are static, and the host waits for
nothing. The operators are `torch.library.triton_op`s, which `torch.compile` sees through. They compute in float16,
bfloat16 and float32; other dtypes, trees of more than 16 levels, and trees for which sorting does not pay are left to
`blocked`. There are no second derivatives.

Triton is optional, and its interpreter (`TRITON_INTERPRET=1`) runs the same kernels on a CPU.
"""

import functools
import importlib.util
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from ultrafastbert.ops import blocked
from ultrafastbert.ops.grouped import pieces

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_LEVELS = 16  # the top's products with all tokens are kept: 2^(levels - 6) numbers a token
MAX_WIDTH = 128  # columns of a block, whose sums a program keeps in registers
CHUNK = 1024  # rows whose weight gradients one program adds up


@functools.cache
def is_installed() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on a CPU."""
    return is_installed() and os.environ.get("TRITON_INTERPRET") == "1"


def runs_on(device: torch.device) -> bool:
    """Whether the kernels can run on the device: Triton is installed, and it is a GPU or the interpreter is on."""
    return is_installed() and (device.type == "cuda" or (device.type == "cpu" and is_interpreted()))


def fff(x: Tensor, weight_in: Tensor, bias_in: Tensor | None, weight_out: Tensor) -> Tensor:
    """`ops.fff` for tokens `(tokens, hidden)`."""
    if not _fits(x, weight_in):
        return blocked.fff(x, weight_in, bias_in, weight_out)
    output, *_ = torch.ops.ultrafastbert.triton_fff(x, weight_in, bias_in, weight_out)
    return output


def route(x: Tensor, weight_in: Tensor, bias_in: Tensor | None) -> Tensor:
    """`ops.route` for tokens `(tokens, hidden)`."""
    if not _fits(x, weight_in):
        return blocked.route(x, weight_in, bias_in)
    return torch.ops.ultrafastbert.triton_route(x, weight_in, bias_in)


def _fits(x: Tensor, weight_in: Tensor) -> bool:
    """Whether the kernels compute this; raises a ValueError where they cannot run at all."""
    if not runs_on(x.device) and x.device.type != "meta":
        missing = f"x is on {x.device}" if is_installed() else "Triton is not installed"
        raise ValueError(f"backend triton: {missing}; it should have Triton and a GPU, or TRITON_INTERPRET=1 on a CPU")
    levels = weight_in.shape[1].bit_length()
    return x.dtype in DTYPES and 1 < levels <= MAX_LEVELS and blocked.pays(x, weight_in)


class Layout(NamedTuple):
    """How trees are cut, and the sizes of the programs' parts."""

    trees: int
    levels: int
    cut: int
    width: int
    tile: int

    @property
    def blocks(self) -> int:
        """The number of blocks of all trees."""
        return self.trees * 2**self.cut


def layout_of(x: Tensor, weight_in: Tensor) -> Layout:
    """The cut with the fewest columns that fits the kernels; larger tiles where blocks get enough rows for them."""
    trees, levels = weight_in.shape[0], weight_in.shape[1].bit_length()
    cuts = [cut for cut in range(1, levels) if _width(levels, cut) <= MAX_WIDTH]
    cut = min(cuts, key=lambda cut: 2**cut + 2 * _width(levels, cut))
    rows_per_block = x.shape[0] // 2**cut  # if all blocks get the same number
    tile = 128 if rows_per_block >= 256 else 64 if rows_per_block >= 64 else 32
    if x.dtype == torch.float32:  # which takes twice the registers
        tile = 32
    return Layout(trees, levels, cut, _width(levels, cut), tile)


def _width(levels: int, cut: int) -> int:
    """The columns of a block: ancestors and subtree, padded to a power of two that matrix units take."""
    return max(16, 1 << (cut + 2 ** (levels - cut) - 2).bit_length())


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Starts a kernel on the device of the first argument; where an operator is traced, as a part of the graph."""
    with torch.cuda.device_of(arguments[0]):
        (kernel if is_interpreted() else wrap_triton(kernel))[grid](*arguments, **constants)


def _precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied: exactly, unless PyTorch's own products may use TF32."""
    return "tf32" if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest" else "ieee"


def _sizes(layout: Layout, x: Tensor) -> dict[str, Any]:
    """The constants that all kernels of tiles have."""
    columns = 64 if x.element_size() == 2 else 32
    return {
        "TREES": layout.trees,
        "HIDDEN": x.shape[1],
        "CUT": layout.cut,
        "SUB": layout.levels - layout.cut,
        "WIDTH": layout.width,
        "PRECISION": _precision(x.dtype),
        "BM": layout.tile,
        "BK": columns,
        "num_warps": 8 if layout.tile * layout.width >= 8192 else 4,
        "num_stages": 3,
    }


def _forward(
    x: Tensor, weight_in: Tensor, bias_in: Tensor | None, weight_out: Tensor | None, layout: Layout
) -> tuple[Tensor, Tensor, Tensor, Tensor, blocked.Order]:
    """Runs the forward kernel: output, place of each row, pre-activations, turns, order.

    Without `weight_out` there are no output and no pre-activations.
    """
    from ultrafastbert.ops.triton import kernels

    order = blocked.sort(x, weight_in, bias_in, layout.cut)
    places = order.token * layout.trees + (order.block >> layout.cut)
    rows = len(places)
    tile_block, tile_start, _ = pieces(order.ends, rows, layout.tile)
    has_output = weight_out is not None
    output = x.new_empty(rows if has_output else 0, x.shape[1])
    pre_activation = x.new_empty(rows if has_output else 0, layout.width)
    turns = torch.empty(rows, dtype=torch.int16, device=x.device)
    _launch(
        kernels.forward,
        (len(tile_block),),
        x,
        weight_in,
        weight_in if bias_in is None else bias_in,
        weight_in if weight_out is None else weight_out,
        places,
        tile_block,
        tile_start,
        order.ends,
        output,
        pre_activation,
        turns,
        HAS_BIAS=bias_in is not None,
        OUTPUT=has_output,
        **_sizes(layout, x),
    )
    return _add_trees(output, layout), places, pre_activation, turns, order


def _add_trees(rows: Tensor, layout: Layout) -> Tensor:
    """`(tokens * trees, hidden)` -> `(tokens, hidden)`."""
    return rows if layout.trees == 1 else rows.unflatten(0, (-1, layout.trees)).sum(1, dtype=rows.dtype)


@triton_op("ultrafastbert::triton_fff", mutates_args={})
def triton_fff(
    x: Tensor, weight_in: Tensor, bias_in: Tensor | None, weight_out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The output `(tokens, hidden)`, and what the backward pass needs.

    That is the place of each row, the end of each block, pre-activations `(rows, width)`, and turns `(rows,)`.
    """
    x, weight_in, weight_out = x.contiguous(), weight_in.contiguous(), weight_out.contiguous()
    bias_in = None if bias_in is None else bias_in.contiguous()
    output, places, pre_activation, turns, order = _forward(x, weight_in, bias_in, weight_out, layout_of(x, weight_in))
    return output, places, order.ends, pre_activation, turns


@triton_op("ultrafastbert::triton_route", mutates_args={})
def triton_route(x: Tensor, weight_in: Tensor, bias_in: Tensor | None) -> Tensor:
    """The path of each token, int64 `(tokens, trees, levels)`."""
    x, weight_in = x.contiguous(), weight_in.contiguous()
    layout = layout_of(x, weight_in)
    bias_in = None if bias_in is None else bias_in.contiguous()
    *_, turns, order = _forward(x, weight_in, bias_in, None, layout)
    return blocked.path_through(order.block, turns.long(), layout.cut, layout.levels)[order.row]


@triton_op("ultrafastbert::triton_fff_backward", mutates_args={})
def triton_fff_backward(
    grad_output: Tensor,
    x: Tensor,
    weight_in: Tensor,
    weight_out: Tensor,
    places: Tensor,
    ends: Tensor,
    pre_activation: Tensor,
    turns: Tensor,
    need_x: bool,
    need_in: bool,
    need_bias: bool,
    need_out: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, weight_in, bias_in and weight_out; those not needed are empty."""
    from ultrafastbert.ops.triton import kernels

    grad_output, x = grad_output.contiguous(), x.contiguous()
    weight_in, weight_out = weight_in.contiguous(), weight_out.contiguous()
    layout, rows = layout_of(x, weight_in), len(places)
    sizes = _sizes(layout, x)
    tile_block, tile_start, _ = pieces(ends, rows, layout.tile)
    grad_x = x.new_empty(rows if need_x else 0, x.shape[1])
    gradient, activation = torch.empty_like(pre_activation), torch.empty_like(pre_activation)
    _launch(
        kernels.backward_tokens,
        (len(tile_block),),
        grad_output,
        weight_in,
        weight_out,
        places,
        tile_block,
        tile_start,
        ends,
        pre_activation,
        turns,
        grad_x,
        gradient,
        activation,
        INPUT=need_x,
        **sizes,
    )
    grad_in, grad_bias, grad_out = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    if need_in or need_bias:
        grad_in, grad_bias = _weight_gradients(gradient, x, places, ends, layout, sizes, need_bias)
    if need_out:
        grad_out, _ = _weight_gradients(activation, grad_output, places, ends, layout, sizes, False)
    return _add_trees(grad_x, layout), grad_in, grad_bias, grad_out


def _weight_gradients(
    values: Tensor, tokens: Tensor, places: Tensor, ends: Tensor, layout: Layout, sizes: dict[str, Any], bias: bool
) -> tuple[Tensor, Tensor]:
    """Values times tokens, `(trees, nodes, hidden)`, and with `bias` the sums of the values, `(trees, nodes)`."""
    from ultrafastbert.ops.triton import kernels

    rows, hidden = len(places), tokens.shape[1]
    chunk_block, chunk_start, last = pieces(ends, rows, CHUNK)
    chunks = len(chunk_block)
    sums = torch.empty(chunks, layout.width, hidden, dtype=torch.float32, device=tokens.device)
    bias_sums = torch.empty(chunks, layout.width if bias else 0, dtype=torch.float32, device=tokens.device)
    sizes = {name: sizes[name] for name in ("TREES", "HIDDEN", "WIDTH", "PRECISION")}
    columns = 64 if layout.width <= 64 else 32
    _launch(
        kernels.backward_weights,
        (chunks * -(-hidden // columns),),
        values,
        tokens,
        places,
        chunk_block,
        chunk_start,
        ends,
        sums,
        bias_sums,
        BIAS=bias,
        CHUNK=CHUNK,
        BM=64 if tokens.element_size() == 2 else 32,
        BK=columns,
        num_warps=4,
        num_stages=3,
        **sizes,
    )

    def add(sums: Tensor) -> Tensor:
        blocks = tokens.new_empty(layout.blocks, *sums.shape[1:])
        size = blocks[0].numel()
        _launch(kernels.add_chunks, (layout.blocks, -(-size // 1024)), sums, last, blocks, size, BK=1024)
        return blocked.heap(blocks, layout.trees, layout.cut, layout.levels)

    return add(sums), add(bias_sums) if bias else tokens.new_empty(0)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, weight_in, _, weight_out = inputs
    ctx.save_for_backward(x, weight_in, weight_out, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_output: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_output is None:
        return None, None, None, None
    if torch.is_grad_enabled():  # with `create_graph`
        raise NotImplementedError("backend 'triton' has no second derivatives; use 'reference' or 'dense' for them")
    gradients = torch.ops.ultrafastbert.triton_fff_backward(grad_output, *ctx.saved_tensors, *ctx.needs_input_grad)
    return tuple(grad if needed else None for grad, needed in zip(gradients, ctx.needs_input_grad, strict=True))


triton_fff.register_autograd(_backward, setup_context=_save)
