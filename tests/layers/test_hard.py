"""HardFFF computes what SoftFFF computes on hard paths, and its decisions divide a sample of inputs evenly."""

import copy

import pytest
import torch
from torch import nn

from ultrafastbert.layers.hard import HardFFF, principal_direction
from ultrafastbert.layers.soft import SoftFFF
from ultrafastbert.ops import native
from ultrafastbert.ops.native import build

needs_native = pytest.mark.skipif(
    build.compiler_version() is None and not native.available(), reason="no C++ compiler"
)


@pytest.fixture(params=["native", "grouped products"])
def implementation(request, monkeypatch):
    """Each of the two implementations."""
    if request.param == "native" and not native.available():
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(native, "available", lambda: request.param == "native")


def make(hidden=16, depth=3, size=4, dtype=torch.float32, seed=0):
    """A layer with decisions and different leaves."""
    torch.manual_seed(seed)
    layer = HardFFF(hidden, depth, size)
    layer.split_by_variance(sample(200, hidden))
    for name, parameter in layer.named_parameters():
        if name.startswith("leaf_"):
            nn.init.normal_(parameter)
    return layer.to(dtype)


def sample(tokens, hidden, seed=1):
    """Tokens of different variance in different directions."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, hidden, generator=generator) @ torch.randn(hidden, hidden, generator=generator)


def soft(layer):
    """The same layer as a SoftFFF, whose implementation is another."""
    other = SoftFFF(
        layer.input_size, layer.leaf_size, layer.input_size, layer.depth, activation=nn.GELU, train_hard=True
    )
    other.load_state_dict(layer.state_dict())
    return other.to(layer.leaf_weight_in.dtype)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("shape", [(7, 16), (2, 3, 16), (16,), (0, 16), (300, 16)])
@pytest.mark.parametrize("depth", [0, 1, 3, 8])
def test_outputs_are_those_of_soft_fff_on_hard_paths(shape, depth):
    layer, x = make(depth=depth), torch.randn(shape)
    expected = soft(layer)(x)
    torch.testing.assert_close(layer(x), expected)
    layer.requires_grad_(False)
    torch.testing.assert_close(layer(x), expected)
    assert torch.equal(layer.route(x), soft(layer).route(x))


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("depth", [0, 1, 4])
def test_gradients_are_those_of_soft_fff(depth):
    layer = make(depth=depth, dtype=torch.float64)
    other = soft(layer)
    gradients = []
    for each in (layer, other):
        x = sample(60, 16).double().requires_grad_()
        (each(x) * torch.arange(16)).sum().backward()
        named = {name: p.grad for name, p in each.named_parameters() if p.grad is not None}
        gradients.append(named | {"x": x.grad})
    torch.testing.assert_close(*gradients)
    assert not any(name.startswith("node_") for name in gradients[0])


@pytest.mark.usefixtures("implementation")
def test_gradients_of_the_input_alone():
    layer, x = make().requires_grad_(False), sample(9, 16).requires_grad_()
    layer(x).sum().backward()
    other = x.detach().clone().requires_grad_()
    soft(layer)(other).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


@pytest.mark.usefixtures("implementation")
def test_there_are_no_second_derivatives():
    x = sample(5, 16).requires_grad_()
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        (gradient,) = torch.autograd.grad(make()(x).square().sum(), x, create_graph=True)
        gradient.sum().backward()


@needs_native
@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("hidden", [1, 24, 67, 256])
@pytest.mark.parametrize("depth, size, tokens", [(0, 5, 3), (1, 1, 1), (4, 33, 1), (4, 33, 90), (6, 8, 2000)])
def test_the_native_operator_agrees(dtype, error, hidden, depth, size, tokens, monkeypatch):
    layer, x = make(hidden, depth, size, dtype).eval(), sample(tokens, hidden).to(dtype)
    with torch.no_grad():
        output = layer(x)
        monkeypatch.setattr(native, "available", lambda: False)
        exact = copy.deepcopy(layer).double()
        leaf = leaves_of(layer, x)
    expected = torch.stack([leaf_output(exact, row, i) for row, i in zip(x.double(), leaf, strict=True)])
    assert output.dtype == dtype
    assert (output.double() - expected).norm() <= error * expected.norm()


def leaves_of(layer, x):
    """In the arithmetic of the native operator, so that rounding does not change a path."""
    nodes = layer.node_weight_in[:, 0], layer.node_bias_in[:, 0]
    weight, bias = (torch.cat([part, part.new_zeros(1, *part.shape[1:])]) for part in nodes)
    leaf = []
    for row in x:
        node = 0
        for _ in range(layer.depth):
            logit = (row.double() @ weight[node].double() + bias[node].double()).item()
            node = 2 * node + 1 + (logit > 0)
        leaf.append(node - 2**layer.depth + 1)
    return leaf


def leaf_output(layer, x, leaf):
    hidden = nn.functional.gelu(layer.leaf_weight_in[leaf] @ x + layer.leaf_bias_in[leaf])
    return hidden @ layer.leaf_weight_out[leaf] + layer.leaf_bias_out[leaf]


@needs_native
@pytest.mark.parametrize(
    "name, change, message",
    [
        ("x", lambda x: x[..., :-1], r"x has shape \[5, 15\]; it should be"),
        ("x", lambda x: x.double(), "node_weight has dtype Float|weight_in has dtype Float"),
        ("node_weight", lambda w: w[1:], r"node_weight has shape \[6, 1, 16\]; it should be \[7, 1, 16\]"),
        ("weight_in", lambda w: w[:7], "weight_in has 7 leaves; their number should be a power of two"),
        ("bias_in", lambda b: b.T, r"bias_in has shape \[4, 8\]; it should be \[8, 4\]"),
    ],
)
def test_the_native_operator_checks_its_arguments(name, change, message):
    layer = make()
    nodes = {"node_weight": layer.node_weight_in, "node_bias": layer.node_bias_in}
    names = ["weight_in", "bias_in", "weight_out", "bias_out"]
    arguments = {"x": sample(5, 16)} | nodes | dict(zip(names, layer._leaves(), strict=True))
    arguments[name] = change(arguments[name].detach())
    with torch.no_grad(), pytest.raises((ValueError, TypeError), match=message):
        torch.ops.ultrafastbert.leaves(*arguments.values())


@needs_native
@pytest.mark.parametrize("depth, size, tokens", [(0, 3, 5), (3, 5, 40), (3, 40, 3), (7, 2, 700)])
@pytest.mark.parametrize("hidden", [5, 300])
def test_native_gradients_do_not_depend_on_the_number_of_threads(depth, size, tokens, hidden):
    layer, x = make(hidden, depth, size), sample(tokens, hidden)
    before, gradients = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            layer.zero_grad()
            given = x.clone().requires_grad_()
            layer(given).square().sum().backward()
            gradients.append([given.grad, *(leaf.grad for leaf in layer._leaves())])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, many) for one, many in zip(*gradients, strict=True))


@needs_native
@pytest.mark.parametrize("operator", ["leaves", "leaves_with_path"])
def test_operators_have_the_shapes_that_are_registered(operator):
    layer, x = make().requires_grad_(operator == "leaves_with_path"), sample(9, 16)
    arguments = (x, layer.node_weight_in, layer.node_bias_in, *layer._leaves())
    torch.library.opcheck(getattr(torch.ops.ultrafastbert, operator).default, arguments)


def test_before_the_split_the_layer_is_the_dense_layer_of_its_first_leaf():
    torch.manual_seed(0)
    layer, x = HardFFF(16, 3, 4), sample(50, 16)
    assert not layer.is_split
    weight_in, bias_in, weight_out, bias_out = (leaf[0] for leaf in layer._leaves())
    expected = nn.functional.gelu(x @ weight_in.T + bias_in) @ weight_out + bias_out
    torch.testing.assert_close(layer(x), expected)
    layer(x).sum().backward()
    assert layer.leaf_weight_in.grad[0].any() and not layer.leaf_weight_in.grad[1:].any()


def test_a_split_keeps_the_function_and_divides_the_sample_evenly():
    torch.manual_seed(0)
    layer, x = HardFFF(16, 5, 4), sample(3200, 16)
    before = layer(x)
    layer.split_by_variance(x)
    torch.testing.assert_close(layer(x), before)
    assert layer.is_split
    _, counts = layer.usage(x)
    assert counts.min() >= 95 and counts.max() <= 105  # 100 tokens at each of 32 leaves
    _, counts = layer.usage(sample(3200, 16, seed=1) + 1e-3)
    assert counts.min() > 80


def test_each_node_divides_its_tokens_along_their_first_principal_component():
    layer, x = HardFFF(6, 2, 1), sample(500, 6)
    layer.split_by_variance(x)
    path = layer.route(x)[:, 0]
    for node in range(3):
        tokens = x[(path == node).any(1)]
        component = torch.linalg.svd(tokens - tokens.mean(0)).Vh[0]
        direction = layer.node_weight_in[node, 0]
        assert (component @ direction).abs() > 0.99 * direction.norm()
        logits = tokens @ direction + layer.node_bias_in[node, 0]
        assert logits.median().item() == pytest.approx(0, abs=1e-5)
        assert logits.square().mean().item() == pytest.approx(1, rel=0.02)


def test_the_direction_of_equal_rows_is_where_the_iteration_starts():
    start = torch.tensor([3.0, 4.0])
    assert principal_direction(torch.zeros(5, 2), start).tolist() == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_a_sample_smaller_than_the_tree_or_of_equal_tokens_gives_finite_decisions(tokens):
    for x in (sample(tokens, 8), torch.ones(tokens, 8)):
        layer = HardFFF(8, 5, 2)
        layer.split_by_variance(x.to(torch.bfloat16))
        assert layer.node_weight_in.isfinite().all() and layer.node_bias_in.isfinite().all()
        assert (layer.node_weight_in.norm(dim=-1) > 0).all() and layer.node_weight_in.abs().max() < 1e4


def test_splits_are_reproducible():
    layers = [HardFFF(8, 4, 2) for _ in range(2)]
    for layer in layers:
        torch.rand(3)  # the global generator has no effect
        layer.split_by_variance(sample(100, 8))
    assert torch.equal(layers[0].node_weight_in, layers[1].node_weight_in)


def test_errors_of_a_split():
    layer = HardFFF(8, 2, 2)
    with pytest.raises(ValueError, match="x has no tokens"):
        layer.split_by_variance(torch.zeros(0, 8))
    with pytest.raises(ValueError, match=r"x has shape \(3, 7\)"):
        layer.split_by_variance(torch.zeros(3, 7))
    with pytest.raises(ValueError, match="x has values that are not finite"):
        layer.split_by_variance(torch.full((5, 8), torch.nan))
    assert not layer.is_split
    layer.split_by_variance(sample(30, 8))
    with pytest.raises(ValueError, match="the tree has decisions"):
        layer.split_by_variance(sample(30, 8))


@pytest.mark.usefixtures("implementation")
def test_autocast_gives_its_dtype_and_float32_gradients():
    layer, x = make(), sample(40, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    assert ((output - layer(x)).norm() / output.norm()) < 0.03
    output.float().sum().backward()
    assert layer.leaf_weight_in.grad.dtype == torch.float32


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("training", [True, False])
def test_compiled_layer_gives_the_same_results(training):
    layer = make().train(training).requires_grad_(training)
    x = sample(30, 16).requires_grad_(training)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


def test_saved_and_copied_layers_give_the_same_outputs():
    layer, x = make(), sample(20, 16)
    other = HardFFF(16, 3, 4)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x)) and torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert repr(layer).startswith("HardFFF(\n  input_size=16, depth=3, leaf_size=4")


@pytest.mark.parametrize("sizes, name", [((0, 1, 1), "hidden_size"), ((8, 31, 1), "depth"), ((8, 1, 0), "leaf_size")])
def test_errors_name_the_argument(sizes, name):
    with pytest.raises(ValueError, match=f"{name} is"):
        HardFFF(*sizes)


def test_balance_moves_thresholds_after_inputs_that_drift():
    torch.manual_seed(0)
    layer, x = HardFFF(16, 4, 2), sample(1600, 16)
    layer.split_by_variance(x)
    drifted = x + 2 * x.std() * torch.randn(16)
    assert layer.usage(drifted)[1].max() > 400
    layer.leaf_counts = torch.zeros(16)
    for _ in range(400):
        layer(drifted)
        assert layer.leaf_counts.sum() == 1600
        layer.balance(0.1)
        assert not layer.leaf_counts.any()
    _, counts = layer.usage(drifted)
    assert counts.min() > 60 and counts.max() < 140


def test_one_balance_by_hand():
    layer = make(depth=2)
    layer.leaf_counts = torch.tensor([6.0, 0, 1, 1])
    before = layer.node_bias_in.clone()
    layer.balance(0.4)
    # the root: 6 left, 2 right; its left child: 6, 0; its right child: 1, 1
    moved = (layer.node_bias_in - before).flatten().tolist()
    assert moved == pytest.approx([0.4 * (6 - 2) / 16, 0.4 / 2, 0], abs=1e-6)


def test_balance_changes_no_tree_without_decisions_and_needs_counts():
    layer = HardFFF(16, 3, 2)
    with pytest.raises(ValueError, match="leaf_counts is None"):
        layer.balance(0.1)
    layer.leaf_counts = torch.zeros(8)
    layer(sample(20, 16))
    layer.balance(0.1)
    assert not layer.node_bias_in.any()


def test_tokens_are_not_counted_in_inference():
    layer = make().eval()
    layer.leaf_counts = torch.zeros(8)
    layer(sample(20, 16))
    assert not layer.leaf_counts.any()
