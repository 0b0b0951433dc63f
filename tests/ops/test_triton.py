"""The Triton kernels in Triton's interpreter: the function and gradients of `reference`; what they leave to others.

The interpreter, which `tests.conftest` switches on, multiplies bfloat16 wrongly, so the dtypes are float16 and
float32. `test_triton_compiled` compiles the same kernels for GPUs.
"""

import pytest
import torch

from tests.ops.test_blocked import assert_agrees, gradients
from tests.ops.test_ops import make
from ultrafastbert import ops
from ultrafastbert.ops import blocked, grouped, triton

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def interpreted():
    """Fails rather than skips if the kernels would not run."""
    assert triton.is_interpreted()


@pytest.fixture
def no_fallback(monkeypatch):
    """Fails if the kernels leave the work to `blocked`. Small trees are cut, too: the interpreter is slow."""
    monkeypatch.setattr(blocked, "fff", None)
    monkeypatch.setattr(blocked, "route", None)
    monkeypatch.setattr(blocked, "SORTING", -(10**9))


def evaluate(*tensors):
    return ops.fff(*tensors, backend="triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "tokens, hidden, trees, depth, bias",
    [
        (1, 32, 1, 8, True),
        (150, 32, 1, 4, True),  # several tiles of a block
        (7, 32, 1, 5, False),
        (40, 24, 3, 4, True),  # the last columns of a tile are masked
        (20, 17, 2, 5, False),  # rows that are not aligned
        (12, 80, 1, 7, True),
    ],
)
def test_agrees_with_reference(no_fallback, tokens, hidden, trees, depth, bias, dtype):
    assert_agrees(make((tokens,), hidden, trees, depth, dtype=dtype, bias=bias), "triton")


@pytest.mark.parametrize("direction", [-1, 1])
def test_all_tokens_in_one_subtree(no_fallback, monkeypatch, direction):
    """The first or the last block gets all tokens: several tiles and, here, several chunks."""
    monkeypatch.setattr(triton, "CHUNK", 64)
    x, weight_in, bias_in, weight_out = make((300,), 32, 1, 5)
    bias_in[:, :7] = 100 * direction
    assert_agrees([x, weight_in, bias_in, weight_out], "triton")


@pytest.mark.parametrize("levels", range(2, 9))
def test_agrees_at_every_number_of_levels(no_fallback, levels):
    assert_agrees(make((30,), 16, 1 + (levels < 6), levels - 1), "triton")


@pytest.mark.parametrize("levels", range(2, 17))
def test_a_cut_fits_the_kernels_and_reduces_the_columns(levels):
    x = torch.empty(1000, 8, device="meta")
    shape = triton.layout_of(x, torch.empty(1, 2**levels - 1, 8, device="meta"))
    assert shape.cut + 2 ** (levels - shape.cut) - 1 <= shape.width <= triton.MAX_WIDTH
    assert shape.width >= 16 and shape.width & (shape.width - 1) == 0
    assert 2**shape.cut + 2 * shape.width <= max(48, 5 * 2 ** (levels / 2))


def test_pieces_cover_every_row_once():
    ends = torch.tensor([0, 13, 13, 50, 50, 52], dtype=torch.int32)
    for size in (1, 16, 37, 100):
        group, start, last = grouped.pieces(ends, 52, size)
        rows = [
            row
            for g, s in zip(group.tolist(), start.tolist(), strict=True)
            for row in range(s, min(s + size, int(ends[g])))
        ]
        assert rows == list(range(52))
        used = torch.tensor([0, -(-13 // size), 0, -(-37 // size), 0, -(-2 // size)])
        assert torch.equal(last.long(), used.cumsum(0))


def test_frozen_arguments(no_fallback):
    """Each argument gets its gradient whichever others are frozen."""
    arguments = make((30,), 16, 2, 4)
    expected = gradients(arguments, lambda *a: evaluate(*a).square(), torch.ones(30, 16))
    for chosen in range(4):
        alone = [t.detach().requires_grad_(i == chosen) for i, t in enumerate(arguments)]
        evaluate(*alone).square().sum().backward()
        assert torch.equal(alone[chosen].grad, expected[chosen])
        assert all(t.grad is None for i, t in enumerate(alone) if i != chosen)


def test_non_contiguous_arguments(no_fallback):
    arguments = make((6, 5), 32, 1, 4)
    upstream = torch.randn(6, 5, 32, generator=torch.Generator().manual_seed(1))
    expected = evaluate(*arguments), *gradients(arguments, evaluate, upstream)
    turned = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in arguments]
    upstream = upstream.transpose(0, -1).contiguous().transpose(0, -1)
    for result, truth in zip((evaluate(*turned), *gradients(turned, evaluate, upstream)), expected, strict=True):
        assert torch.equal(result, truth)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_input_does_not_change_other_tokens_or_subtrees(no_fallback, value):
    arguments = make((40,), 32, 2, 5)
    upstream = torch.ones(40, 32)
    clean = evaluate(*arguments), *gradients(arguments, evaluate, upstream)
    arguments[0][7, 3] = value
    others = torch.arange(40) != 7
    path = ops.route(*arguments[:3], backend="triton")
    if value != value:  # NaN is not greater than 0, so the token goes left
        assert torch.equal(path[7], 2 ** torch.arange(6).expand(2, 6) - 1)
    expected = ops.fff(*arguments, backend="reference")
    output, grad_x, grad_in, *_ = evaluate(*arguments), *gradients(arguments, evaluate, upstream)
    torch.testing.assert_close(output[others], clean[0][others])
    torch.testing.assert_close(grad_x[others], clean[1][others])
    assert torch.equal(output[7].isnan(), expected[7].isnan())
    # an input weight that a token of its block does not use has the gradient 0 * x, but only in its own subtree
    cut = triton.layout_of(*arguments[:2]).cut
    above = torch.arange(1, 64)
    while (above >= 2 ** (cut + 1)).any():
        above = torch.where(above >= 2 ** (cut + 1), above // 2, above)
    beside = above == path[7, :, cut, None] + 1
    used = torch.zeros(2, 63, dtype=torch.bool).scatter_(1, path[7], True)
    assert grad_in[~(used | beside)].isfinite().all()


def test_second_derivatives_raise(no_fallback):
    arguments = [t.requires_grad_() for t in make((3,), 8, 1, 4)]
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        torch.autograd.grad(evaluate(*arguments).sum(), arguments[0], create_graph=True)


def test_under_autocast(no_fallback):
    """The output is that of arguments cast to autocast's dtype; gradients have the dtype of the parameters."""
    arguments = [t.requires_grad_() for t in make((30,), 16, 1, 4)]
    with torch.autocast("cpu", dtype=torch.float16):
        output = evaluate(*arguments)
    small = [t.detach().half().requires_grad_() for t in arguments]
    expected = evaluate(*small)
    assert torch.equal(output, expected)
    in_float, in_half = torch.autograd.grad(output.sum(), arguments), torch.autograd.grad(expected.sum(), small)
    for gradient, truth in zip(in_float, in_half, strict=True):
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient, truth.float())


def test_recomputes_in_activation_checkpointing(no_fallback):
    arguments = [t.requires_grad_() for t in make((20,), 16, 1, 4)]
    expected = torch.autograd.grad(evaluate(*arguments).sum(), arguments)
    for reentrant in (True, False):
        copies = [t.detach().requires_grad_() for t in arguments]
        torch.utils.checkpoint.checkpoint(evaluate, *copies, use_reentrant=reentrant).sum().backward()
        assert all(torch.equal(copy.grad, truth) for copy, truth in zip(copies, expected, strict=True))


@pytest.mark.parametrize(
    "tokens, depth, dtype", [(9, 4, torch.float32), (0, 8, torch.float32), (9, 8, torch.float64)], ids=str
)
def test_leaves_the_rest_to_blocked(monkeypatch, tokens, depth, dtype):
    monkeypatch.setattr(triton, "triton_fff", None)
    monkeypatch.setattr(torch.ops.ultrafastbert, "triton_fff", None, raising=False)
    arguments = make((tokens,), 16, 1, depth, dtype=dtype)
    assert torch.equal(evaluate(*arguments), ops.fff(*arguments, backend="blocked"))
    assert torch.equal(ops.route(*arguments[:3], backend="triton"), ops.route(*arguments[:3], backend="blocked"))


def test_says_what_is_missing(monkeypatch):
    arguments = make((9,), 16, 1, 8)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="backend triton: x is on cpu; it should have Triton and a GPU"):
        evaluate(*arguments)
    monkeypatch.setattr(triton, "is_installed", lambda: False)
    with pytest.raises(ValueError, match="backend triton: Triton is not installed"):
        ops.route(*arguments[:3], backend="triton")
