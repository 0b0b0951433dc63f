"""Every backend computes the function and the gradients of `reference` for all shapes, and rejects wrong arguments."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrafastbert import ops

FAST = [name for name in ops.BACKENDS if name != "reference"]
# (batch shape, hidden, trees, depth)
SHAPES = [
    ((4, 9), 32, 1, 11),
    ((257,), 24, 1, 6),
    ((5, 3, 2), 17, 2, 3),
    ((33,), 1, 3, 2),
    ((16,), 48, 64, 0),
    ((8,), 33, 64, 2),
    ((), 12, 2, 4),
    ((0,), 8, 2, 3),
    ((3, 0), 8, 1, 0),
    ((1,), 768, 4, 5),
]


def make(batch, hidden, trees, depth, dtype=torch.float32, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    nodes = 2 ** (depth + 1) - 1

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = normal(*batch, hidden)
    weight_in = normal(trees, nodes, hidden) / hidden**0.5
    bias_in = normal(trees, nodes) / 4 if bias else None
    weight_out = normal(trees, nodes, hidden) / (trees * (depth + 1)) ** 0.5
    return [t if t is None else t.to(dtype) for t in (x, weight_in, bias_in, weight_out)]


def same_path(arguments, backend):
    """Returns which tokens have the same paths as in `reference`, bool (...), and bounds the number of others."""
    x, weight_in, bias_in, _ = arguments
    expected = ops.route(x, weight_in, bias_in, backend="reference")
    path = ops.route(x, weight_in, bias_in, backend=backend)
    assert path.dtype == torch.int64 and path.shape == expected.shape
    agree = (path == expected).flatten(-2).all(-1)
    decisions = expected[..., :-1].numel()
    # a decision differs where the pre-activation is within rounding of zero: rarely in float32, about one in a
    # hundred in bfloat16
    differ = (~agree).sum().item()
    assert differ <= (0 if x.dtype == torch.float32 else 1 + 0.03 * decisions)
    return agree


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", FAST)
def test_agrees_with_reference(backend, shape, bias, dtype):
    if backend == "triton" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 wrongly")
    arguments = make(*shape, dtype=dtype, bias=bias)
    agree = same_path(arguments, backend)
    expected = ops.fff(*arguments, backend="reference")
    output = ops.fff(*arguments, backend=backend)
    assert output.dtype == dtype and output.shape == arguments[0].shape
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(output[agree], expected[agree], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trees, depth", [(1, 0), (3, 0), (1, 3), (2, 2)])
@pytest.mark.parametrize("backend", list(ops.BACKENDS))
def test_gradcheck(backend, trees, depth, bias):
    arguments = make((2, 3), 5, trees, depth, dtype=torch.float64, bias=bias)
    for tensor in arguments:
        if tensor is not None:
            tensor.requires_grad_()
    # with this seed no decision is within gradcheck's step of its boundary, where the function has a jump
    assert torch.autograd.gradcheck(lambda *a: ops.fff(*a, backend=backend), arguments, eps=1e-6)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("shape", [((6, 7), 32, 1, 8), ((41,), 19, 5, 3), ((0,), 8, 2, 3)], ids=str)
def test_gradients_agree_with_reference(backend, shape):
    gradients = []
    for name in ("reference", backend):
        arguments = [t.requires_grad_() for t in make(*shape)]
        ops.fff(*arguments, backend=name).square().sum().backward()
        gradients.append([t.grad for t in arguments])
    for expected, gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", list(ops.BACKENDS))
def test_nodes_off_all_paths_get_no_gradient(backend):
    arguments = [t.requires_grad_() for t in make((3,), 16, 2, 5)]
    x, weight_in, bias_in, weight_out = arguments
    ops.fff(*arguments, backend=backend).sum().backward()
    touched = torch.zeros(weight_in.shape[:2], dtype=torch.bool)
    for tree, paths in enumerate(ops.route(x, weight_in, bias_in, backend=backend).unbind(-2)):
        touched[tree, paths.flatten()] = True
    for parameter in (weight_in, bias_in, weight_out):
        assert parameter.grad[~touched].eq(0).all() and parameter.grad[touched].ne(0).any()


@pytest.mark.parametrize("backend", list(ops.BACKENDS))
@settings(deadline=None, max_examples=40)
@given(depth=st.integers(0, 7), trees=st.integers(1, 5), hidden=st.integers(1, 20), seed=st.integers(0, 2**16))
def test_paths_follow_the_pre_activations(backend, depth, trees, hidden, seed):
    """Each step goes to a child: the right one if the pre-activation is positive, otherwise the left one."""
    x, weight_in, bias_in, _ = make((4,), hidden, trees, depth, dtype=torch.float64, seed=seed)
    path = ops.route(x, weight_in, bias_in, backend=backend)
    assert path.shape == (4, trees, depth + 1) and path[..., 0].eq(0).all()
    pre_activation = torch.einsum("nh,tmh->ntm", x, weight_in) + bias_in
    right = pre_activation.gather(-1, path[..., :-1]) > 0
    assert torch.equal(path[..., 1:], 2 * path[..., :-1] + 1 + right.long())


@pytest.mark.parametrize("backend", list(ops.BACKENDS))
def test_depth_zero_is_the_dense_layer(backend):
    x, weight_in, bias_in, weight_out = make((7,), 12, 30, 0)
    hidden = torch.nn.functional.gelu(x @ weight_in[:, 0].T + bias_in[:, 0])
    torch.testing.assert_close(ops.fff(x, weight_in, bias_in, weight_out, backend), hidden @ weight_out[:, 0])


@pytest.mark.parametrize("backend", list(ops.BACKENDS))
def test_zero_pre_activation_goes_left(backend):
    x, weight_in, bias_in, _ = make((3,), 8, 2, 3)
    path = ops.route(x, weight_in * 0, bias_in * 0, backend=backend)
    assert torch.equal(path, torch.tensor([0, 1, 3, 7]).expand(3, 2, 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("backend", list(ops.BACKENDS))
def test_non_finite_input_does_not_change_other_tokens(backend, value):
    arguments = make((6,), 8, 2, 4)
    expected = ops.fff(*arguments, backend=backend)
    arguments[0][2, 3] = value
    path = ops.route(*arguments[:3], backend=backend)
    assert path.min() >= 0 and path.max() < 31
    output = ops.fff(*arguments, backend=backend)
    others = [0, 1, 3, 4, 5]
    torch.testing.assert_close(output[others], expected[others])
    assert not output[2].isfinite().all()


@pytest.mark.parametrize("backend", list(ops.BACKENDS))
def test_autocast_computes_in_its_dtype(backend):
    arguments = make((9,), 16, 2, 3)
    arguments[0] = arguments[0].bfloat16()  # the output of the previous layer under autocast
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = ops.fff(*arguments, backend=backend)
    expected = ops.fff(*[t.bfloat16() for t in arguments], backend=backend)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("backend", list(ops.BACKENDS))
def test_shapes_on_the_meta_device(backend):
    arguments = [t.to("meta") for t in make((5, 4), 16, 2, 4)]
    assert ops.fff(*arguments, backend=backend).shape == (5, 4, 16)
    assert ops.route(*arguments[:3], backend=backend).shape == (5, 4, 2, 5)


@pytest.mark.parametrize("backend", FAST)
def test_compiles_without_graph_break(backend):
    arguments = [t.requires_grad_() for t in make((5, 4), 16, 2, 4)]
    compiled = torch.compile(lambda *a: ops.fff(*a, backend=backend), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), ops.fff(*arguments, backend=backend))


def test_non_contiguous_arguments():
    x, weight_in, bias_in, weight_out = make((6, 4), 16, 2, 3)
    expected = ops.fff(x, weight_in, bias_in, weight_out, backend="reference")
    for backend in FAST:
        output = ops.fff(
            x.transpose(0, 1),
            weight_in.transpose(1, 2).contiguous().transpose(1, 2),
            bias_in.T.contiguous().T,
            weight_out,
            backend=backend,
        )
        torch.testing.assert_close(output, expected.transpose(0, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": torch.zeros(2, 7)}, ValueError, r"x has shape \(2, 7\); it should be \(\.\.\., 8\)"),
        ({"x": torch.zeros(2, 8, dtype=torch.long)}, TypeError, "x has dtype torch.int64"),
        (
            {"x": torch.zeros(2, 8).double()},
            TypeError,
            "weight_in has dtype torch.float32; it should have the dtype of x",
        ),
        ({"weight_in": torch.zeros(7, 8)}, ValueError, r"weight_in has shape \(7, 8\)"),
        ({"weight_in": torch.zeros(2, 6, 8)}, ValueError, "weight_in has 6 nodes per tree"),
        ({"bias_in": torch.zeros(2, 8)}, ValueError, r"bias_in has shape \(2, 8\); it should be \(2, 7\)"),
        ({"weight_out": torch.zeros(2, 3, 8)}, ValueError, r"weight_out has shape \(2, 3, 8\)"),
        ({"weight_out": torch.zeros(2, 7, 8, dtype=torch.bfloat16)}, TypeError, "weight_out has dtype"),
        ({"bias_in": torch.zeros(2, 7, device="meta")}, ValueError, "bias_in is on device meta"),
        ({"backend": "fast"}, ValueError, "'fast'; it should be one of reference, dense, gather"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    x, weight_in, bias_in, weight_out = make((2,), 8, 2, 2)
    arguments = {"x": x, "weight_in": weight_in, "bias_in": bias_in, "weight_out": weight_out} | change
    with pytest.raises(error, match=message):
        ops.fff(**arguments)


def test_environment_variable_sets_the_backend(monkeypatch):
    arguments = make((2,), 8, 2, 2)
    monkeypatch.setenv("UFB_FFF_BACKEND", "gather")
    assert torch.equal(ops.fff(*arguments), ops.fff(*arguments, backend="gather"))
    monkeypatch.setenv("UFB_FFF_BACKEND", "fastest")
    with pytest.raises(ValueError, match="'fastest'"):
        ops.fff(*arguments)
    assert torch.equal(ops.fff(*arguments, backend="dense"), ops.fff(*arguments, backend="dense"))


@pytest.mark.parametrize(
    "depth, inference, training",
    [(0, "dense", "dense"), (6, "dense", "dense"), (7, "gather", "blocked"), (11, "gather", "blocked")],
)
def test_default_backend_follows_depth_and_gradients(monkeypatch, depth, inference, training):
    x, weight_in, *_ = make((2,), 4, 1, depth)
    monkeypatch.setattr(ops.native, "available", lambda: True)
    assert ops.choose_backend(x, weight_in) == ("native" if depth else "dense")
    monkeypatch.setattr(ops.native, "available", lambda: False)
    assert ops.choose_backend(x, weight_in) == inference
    assert ops.choose_backend(x, weight_in.requires_grad_()) == training
