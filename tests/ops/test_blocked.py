"""The blocked evaluation: the function and gradients of `reference` for any distribution of tokens over subtrees, and
static shapes."""

import importlib.util

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import ultrafastbert
from tests.ops.test_ops import make
from ultrafastbert import ops
from ultrafastbert.ops import blocked, grouped

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture
def cut_all(monkeypatch):
    """Cuts trees of any size, also where `dense` would be faster."""
    monkeypatch.setattr(blocked, "SORTING", -(10**9))


def gradients(arguments, evaluate, upstream):
    arguments = [t.detach().requires_grad_() for t in arguments if t is not None]
    return torch.autograd.grad(evaluate(*arguments), arguments, upstream)


def along_path(path):
    """The operator in float64 along given paths: small dtypes may choose differently near zero."""

    def evaluate(x, weight_in, *bias_in_and_weight_out):
        *bias_in, weight_out = bias_in_and_weight_out
        pre_activation = torch.einsum("nh,tmh->ntm", x, weight_in) + sum(bias_in)
        activation = torch.nn.functional.gelu(pre_activation)
        on_path = torch.zeros_like(activation).scatter_(-1, path, 1.0)
        return torch.einsum("ntm,tmh->nh", activation * on_path, weight_out)

    return evaluate


def assert_agrees(arguments, backend="blocked"):
    """Output and gradients agree with float64 along the same paths, which agree with `reference` up to rounding."""
    dtype = arguments[0].dtype
    path = ops.route(*arguments[:3], backend=backend)
    differ = path != ops.route(*arguments[:3], backend="reference")
    assert differ.any(-1).sum() <= (0 if dtype in DTYPES[::3] else 1 + 0.03 * path[..., 1:].numel())

    def evaluate(*tensors):  # `gradients` omits a bias that is None
        x, weight_in, *bias_in, weight_out = tensors
        return ops.fff(x, weight_in, bias_in[0] if bias_in else None, weight_out, backend=backend)

    present = [t for t in arguments if t is not None]
    output = evaluate(*present)
    assert output.dtype == dtype and output.shape == arguments[0].shape
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    results = [output, *gradients(present, evaluate, upstream)]
    exact = [t.double() for t in present]
    expected = [along_path(path)(*exact), *gradients(exact, along_path(path), upstream.double())]
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14}.get(dtype, 2 * torch.finfo(dtype).eps)
    for result, truth in zip(results, expected, strict=True):
        assert result.dtype == dtype
        scale = truth.abs().max() + 1e-30
        torch.testing.assert_close(result.double() / scale, truth / scale, rtol=0, atol=4 * tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "tokens, hidden, trees, depth, bias",
    [
        (1, 32, 1, 8, True),
        (7, 32, 1, 8, False),
        (1000, 32, 1, 8, True),
        (203, 24, 3, 7, True),
        (64, 17, 2, 7, True),  # unaligned rows
        (9, 768, 1, 9, False),
    ],
)
def test_agrees_with_reference(tokens, hidden, trees, depth, bias, dtype):
    arguments = make((tokens,), hidden, trees, depth, dtype=dtype, bias=bias)
    assert blocked.pays(*arguments[:2])
    assert_agrees(arguments)


@pytest.mark.parametrize("depth", range(1, 7))
@pytest.mark.parametrize("trees", [1, 3])
def test_agrees_at_every_depth(cut_all, trees, depth):
    assert_agrees(make((50,), 16, trees, depth))


@pytest.mark.parametrize("levels", [2, 5, 8])
def test_agrees_at_every_cut(cut_all, monkeypatch, levels):
    for cut in range(1, levels):
        monkeypatch.setattr(blocked, "_cut", lambda levels, cut=cut: cut)
        assert_agrees(make((30,), 16, 2, levels - 1))


def test_gradcheck(cut_all):
    for depth, bias in ((1, True), (3, False), (4, True)):
        arguments = [t if t is None else t.requires_grad_() for t in make((5,), 4, 2, depth, torch.float64, bias)]
        assert torch.autograd.gradcheck(lambda *a: ops.fff(*a, backend="blocked"), arguments, eps=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("direction", [-1, 1])
def test_all_tokens_in_one_subtree(direction, dtype):
    """The first or the last block gets all tokens. The others get no token and no gradient."""
    x, weight_in, bias_in, weight_out = make((300,), 32, 2, 8, dtype=dtype)
    bias_in[:, :15] = 100 * direction
    assert_agrees([x, weight_in, bias_in, weight_out])
    arguments = [t.requires_grad_() for t in (x, weight_in, bias_in, weight_out)]
    ops.fff(*arguments, backend="blocked").sum().backward()
    touched = torch.zeros(2, 511, dtype=torch.bool)
    for tree, path in enumerate(ops.route(*arguments[:3], backend="blocked").unbind(1)):
        touched[tree, path.flatten()] = True
    for parameter in arguments[1:]:
        assert parameter.grad[~touched].eq(0).all() and parameter.grad[touched].ne(0).any()


def test_no_tokens():
    arguments = [t.requires_grad_() for t in make((0,), 32, 1, 8)]
    output = ops.fff(*arguments, backend="blocked")
    output.sum().backward()
    assert output.shape == (0, 32) and all(t.grad.eq(0).all() for t in arguments)
    assert ops.route(*arguments[:3], backend="blocked").shape == (0, 1, 9)


def test_frozen_arguments():
    """Each argument gets its gradient whichever others are frozen."""
    arguments = make((40,), 16, 2, 7)
    expected = gradients(arguments, lambda *a: ops.fff(*a, backend="blocked").square(), torch.ones(40, 16))
    for chosen in range(4):
        alone = [t.detach().requires_grad_(i == chosen) for i, t in enumerate(arguments)]
        ops.fff(*alone, backend="blocked").square().sum().backward()
        torch.testing.assert_close(alone[chosen].grad, expected[chosen])
        assert all(t.grad is None for i, t in enumerate(alone) if i != chosen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_non_contiguous_arguments(dtype):
    arguments = make((6, 5), 32, 2, 7, dtype=dtype)
    upstream = torch.randn(6, 5, 32, generator=torch.Generator().manual_seed(1)).to(dtype)

    def evaluate(*tensors):
        return ops.fff(*tensors, backend="blocked")

    def turned(*tensors):
        *tensors, upstream = (t.transpose(0, -1).contiguous().transpose(0, -1) for t in tensors)
        return evaluate(*tensors), *gradients(tensors, evaluate, upstream)

    expected = evaluate(*arguments), *gradients(arguments, evaluate, upstream)
    for result, truth in zip(turned(*arguments, upstream), expected, strict=True):
        torch.testing.assert_close(result, truth)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_non_finite_input_does_not_change_other_tokens_or_subtrees(dtype, value):
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    arguments = make((60,), 32, 2, 8, dtype=dtype)
    upstream = torch.ones(60, 32, dtype=dtype)

    def evaluate(*tensors):
        return ops.fff(*tensors, backend="blocked")

    clean = evaluate(*arguments), *gradients(arguments, evaluate, upstream)
    arguments[0][7, 3] = value
    others = torch.arange(60) != 7
    path = ops.route(*arguments[:3], backend="blocked")
    assert path.min() >= 0 and path.max() < 511
    if value != value:  # NaN is not greater than 0, so the token goes left
        assert torch.equal(path[7], 2 ** torch.arange(9).expand(2, 9) - 1)
    expected = ops.fff(*arguments, backend="reference")
    output, grad_x, grad_in, grad_bias, grad_out = evaluate(*arguments), *gradients(arguments, evaluate, upstream)
    for result, truth in ((output, clean[0]), (grad_x, clean[1])):
        torch.testing.assert_close(result[others], truth[others], rtol=tolerance, atol=tolerance)
    assert torch.equal(output[7].isnan(), expected[7].isnan())
    used = torch.zeros(2, 511, dtype=torch.bool).scatter_(1, path[7], True)
    assert grad_bias[~used].isfinite().all() and grad_out[~used].isfinite().all()
    # an input weight that a token of its block does not use has the gradient 0 * x, but only in its own subtree
    cut = blocked._cut(9)
    above = torch.arange(1, 512)
    while (above >= 2 ** (cut + 1)).any():
        above = torch.where(above >= 2 ** (cut + 1), above // 2, above)
    beside = above == path[7, :, cut, None] + 1
    assert grad_in[~(used | beside)].isfinite().all()


def test_shallow_trees_are_dense():
    for trees, depth in ((128, 0), (128, 4), (1, 6)):
        arguments = make((9,), 16, trees, depth)
        assert not blocked.pays(*arguments[:2])
        expected = ops.fff(*arguments, backend="dense")
        torch.testing.assert_close(ops.fff(*arguments, backend="blocked"), expected)


@pytest.mark.parametrize("levels", range(8, 20))
def test_cut_is_near_the_middle_and_reduces_the_columns(levels):
    cut = blocked._cut(levels)
    assert abs(cut - levels / 2) <= 1
    assert blocked._columns(levels, cut) < 6 * 2 ** (levels / 2) and blocked._block_width(levels, cut) % 8 == 0


def test_blocks_hold_subtrees_and_ancestors():
    heap = torch.arange(2 * 31.0).view(2, 31)
    block = blocked._blocks(heap, 2)[6]  # the third of four subtrees of the second tree
    assert block.tolist() == [31 + node for node in (0, 2, 5, 11, 12, 23, 24, 25, 26)] + [0] * 7


def test_heap_is_the_adjoint_of_blocks():
    generator = torch.Generator().manual_seed(0)
    heap = torch.randn(3, 63, 4, generator=generator, dtype=torch.float64)
    for cut in range(1, 6):
        blocks = blocked._blocks(heap, cut)
        other = torch.randn(blocks.shape, generator=generator, dtype=torch.float64)
        torch.testing.assert_close((blocks * other).sum(), (heap * blocked.heap(other, 3, cut, 6)).sum())


def test_loop_and_kernel_of_grouped_products_agree():
    generator = torch.Generator().manual_seed(0)
    rows, other, blocks = (
        torch.randn(*shape, generator=generator).bfloat16() for shape in ((50, 16), (50, 8), (5, 16, 8))
    )
    ends = torch.tensor([0, 13, 13, 50, 50], dtype=torch.int32)
    for a, b in ((rows, blocks), (rows.T, other)):
        kernel, loop = grouped.grouped_mm(a, b, ends), grouped.looped_mm(a, b, ends)
        assert kernel.shape == loop.shape
        torch.testing.assert_close(kernel, loop)
        torch.library.opcheck(grouped.looped_mm, (a, b, ends))
    product = grouped.zero_empty(torch.full_like(kernel, float("nan")), ends)
    assert product.isnan().flatten(1).all(1).tolist() == [False, True, False, True, False]
    assert product[[0, 2, 4]].eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, groups", [(50, 5), (1000, 7), (3, 9), (300, 300)])
def test_tiles_and_loop_of_grouped_products_agree(rows, groups, dtype):
    """Tiles, which GPUs without a kernel use: several a group, empty groups, groups of less than a tile."""
    generator = torch.Generator().manual_seed(0)
    a, other, blocks = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((rows, 16), (rows, 8), (groups, 16, 8))
    )
    inner = torch.randint(rows + 1, (groups - 1,), generator=generator).sort().values
    ends = torch.cat((inner, torch.tensor([rows]))).int()
    for left, right in ((a, blocks), (a.T, other)):
        tiles, loop = grouped.tiled_mm(left, right, ends), grouped.looped_mm(left, right, ends)
        assert tiles.dtype == dtype and tiles.shape == loop.shape
        exact = grouped.looped_mm(left.double(), right.double(), ends)
        scale, tolerance = exact.abs().max() + 1e-30, 16 * torch.finfo(dtype).eps
        torch.testing.assert_close(tiles / scale, exact / scale, rtol=0, atol=tolerance, check_dtype=False)
    a[0] = float("nan")  # in the first group that is not empty
    first = int((ends > 0).nonzero()[0])
    product = grouped.tiled_mm(a.T, other, ends)
    assert product[first].isnan().all() and product[torch.arange(groups) != first].isfinite().all()


@pytest.mark.parametrize("tokens, trees, depth", [(300, 1, 8), (90, 2, 7)])
def test_agrees_with_reference_in_tiles(monkeypatch, tokens, trees, depth):
    monkeypatch.setattr(blocked, "grouped_mm", grouped.tiled_mm)
    for dtype in (torch.float32, torch.bfloat16):
        assert_agrees(make((tokens,), 32, trees, depth, dtype=dtype))
    x, weight_in, bias_in, weight_out = make((300,), 32, 1, 8)
    bias_in[:, :15] = 100  # all tokens in one subtree
    assert_agrees([x, weight_in, bias_in, weight_out])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_shapes_are_static_and_the_host_reads_no_values(dtype):
    """Tracing with fake tensors, which have no values, fails if the host reads a value."""
    arguments = [t.requires_grad_() for t in make((50,), 32, 2, 8, dtype=dtype)]

    def step(*tensors):
        return torch.autograd.grad(ops.fff(*tensors, backend="blocked").square().sum(), tensors)

    graph = make_fx(step, tracing_mode="fake")(*arguments)
    called = [str(node.target) for node in graph.graph.nodes]
    products = "aten._grouped_mm.default" if dtype == torch.bfloat16 else "ultrafastbert.grouped_mm.default"
    assert called.count(products) == 7  # all other operators are PyTorch's
    assert all(name.startswith("aten.") for name in called if "." in name and name != products)
    for result, expected in zip(graph(*arguments), step(*arguments), strict=True):
        torch.testing.assert_close(result, expected)
    graph(*[t.roll(1, 0) for t in arguments])  # other values give other groups, in the same program


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiles_with_gradients_for_any_number_of_tokens(dtype):
    layer = ultrafastbert.FFF(32, 8, trees=2, backend="blocked").to(dtype)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (9, 100):
        x = torch.randn(tokens, 32, generator=torch.Generator().manual_seed(tokens)).to(dtype)
        expected, results = (torch.autograd.grad(f(x).square().sum(), layer.parameters()) for f in (layer, compiled))
        for result, truth in zip(results, expected, strict=True):
            torch.testing.assert_close(result, truth)


def test_exports_with_any_number_of_tokens():
    layer = ultrafastbert.FFF(24, 7, trees=2, backend="blocked").eval()
    tokens = torch.export.Dim("tokens", min=2)
    program = torch.export.export(layer, (torch.randn(4, 24),), dynamic_shapes={"x": {0: tokens}})
    x = torch.randn(9, 24)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_recomputes_in_activation_checkpointing():
    arguments = [t.requires_grad_() for t in make((20,), 16, 1, 7)]
    expected = torch.autograd.grad(ops.fff(*arguments, backend="blocked").sum(), arguments)
    for reentrant in (True, False):
        copies = [t.detach().requires_grad_() for t in arguments]
        torch.utils.checkpoint.checkpoint(
            lambda *a: ops.fff(*a, backend="blocked"), *copies, use_reentrant=reentrant
        ).sum().backward()
        for copy, truth in zip(copies, expected, strict=True):
            torch.testing.assert_close(copy.grad, truth)


def test_second_derivatives_raise():
    arguments = [t.requires_grad_() for t in make((3,), 8, 1, 8)]
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        torch.autograd.grad(ops.fff(*arguments, backend="blocked").sum(), arguments[0], create_graph=True)


def test_default_backend_on_a_gpu(monkeypatch):
    """`blocked` from depth 8 on where grouped products have a kernel, otherwise `dense`."""

    def chosen(depth, dtype=torch.bfloat16, capability=(9, 0), width=16):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
            x = torch.empty(4, width, dtype=dtype, device="cuda")
            weight_in = torch.empty(1, 2 ** (depth + 1) - 1, width, dtype=dtype, device="cuda")
            return ops.choose_backend(x, weight_in)

    assert [chosen(depth) for depth in (0, 4, 7, 8, 11)] == ["dense"] * 3 + ["blocked"] * 2
    assert chosen(11, capability=(10, 0)) == "blocked"
    assert chosen(11, width=12) == chosen(11, capability=(12, 0)) == "dense"
    assert chosen(11, capability=(8, 0)) == chosen(11, torch.float32) == chosen(11, torch.float16) == "dense"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast(dtype):
    """The output is that of arguments cast to autocast's dtype; gradients have the dtype of the parameters."""
    arguments = [t.requires_grad_() for t in make((30,), 16, 2, 7)]
    with torch.autocast("cpu", dtype=dtype):
        output = ops.fff(*arguments, backend="blocked")
    gradients_in_float = torch.autograd.grad(output.sum(), arguments)
    small = [t.detach().to(dtype).requires_grad_() for t in arguments]
    expected = ops.fff(*small, backend="blocked")
    torch.testing.assert_close(output, expected)
    for gradient, truth in zip(gradients_in_float, torch.autograd.grad(expected.sum(), small), strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, truth.float())


def test_in_inference_mode():
    arguments = make((30,), 16, 2, 7)
    with torch.inference_mode():
        output = ops.fff(*arguments, backend="blocked")
    torch.testing.assert_close(output, ops.fff(*arguments, backend="reference"), rtol=1e-5, atol=1e-5)


def test_copies_of_the_module_share_the_operator():
    """Models from the Hub bring copies; defining the operator again would free what the first one's callers use."""
    before = torch.ops.ultrafastbert.grouped_mm.default
    spec = importlib.util.spec_from_file_location("copy_of_grouped", grouped.__file__)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    assert copy.looped_mm.default is before is torch.ops.ultrafastbert.grouped_mm.default
    a, b, ends = torch.randn(5, 3), torch.randn(2, 3, 4), torch.tensor([2, 5], dtype=torch.int32)
    torch.testing.assert_close(copy.looped_mm(a, b, ends), grouped.looped_mm(a, b, ends), rtol=0, atol=0)
