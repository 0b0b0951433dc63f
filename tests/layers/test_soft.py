"""SoftFFF against a recursive implementation of the paper's algorithm, and its properties."""

import copy
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from ultrafastbert import FFF, FeedForward, SoftFFF, ops
from ultrafastbert.layers import soft

SHAPES = [(7, 6), (2, 3, 6), (6,), (1, 6), (0, 6)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(depth=3, dtype=torch.float64, **options):
    return SoftFFF(6, 4, 5, depth, **options).to(dtype)


def logit(layer, x, node):
    """The logit of one node for one token."""
    hidden = layer.node_weight_in[node] @ x + layer.node_bias_in[node]
    if layer.node_size == 1:
        return hidden[0]
    return layer.node_weight_out[node] @ layer.activation(hidden) + layer.node_bias_out[node]


def leaf(layer, x, j):
    hidden = layer.activation(layer.leaf_weight_in[j] @ x + layer.leaf_bias_in[j])
    return hidden @ layer.leaf_weight_out[j] + layer.leaf_bias_out[j]


def forward_training(layer, x, level=0, n=0):
    """FORWARD_T of algorithm 1, arXiv 2308.14711, for one token. Nodes are numbered by level and position."""
    if level == layer.depth:
        return leaf(layer, x, n)
    c = logit(layer, x, 2**level - 1 + n).sigmoid()
    right = forward_training(layer, x, level + 1, 2 * n + 1)
    return c * right + (1 - c) * forward_training(layer, x, level + 1, 2 * n)


def forward_inference(layer, x, level=0, n=0):
    """FORWARD_I of the same algorithm. Returns the output and the leaf."""
    if level == layer.depth:
        return leaf(layer, x, n), n
    right = logit(layer, x, 2**level - 1 + n).sigmoid() > 0.5
    return forward_inference(layer, x, level + 1, 2 * n + int(right))


def together(outputs, shape):
    return torch.stack(outputs).view(*shape[:-1], 5) if outputs else torch.zeros(*shape[:-1], 5, dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("node_size", [1, 3])
def test_training_and_inference_agree_with_algorithm_1(shape, node_size):
    layer, x = make(node_size=node_size, activation=nn.GELU), torch.randn(shape, dtype=torch.float64)
    tokens = x.reshape(-1, 6)
    soft_outputs = [forward_training(layer, token) for token in tokens]
    hard = [forward_inference(layer, token) for token in tokens]
    torch.testing.assert_close(layer.train()(x), together(soft_outputs, shape))
    torch.testing.assert_close(layer.eval()(x), together([output for output, _ in hard], shape))
    leaves = torch.tensor([7 + j for _, j in hard], dtype=torch.long).view(*shape[:-1], 1)
    assert torch.equal(layer.route(x)[..., -1], leaves)


@pytest.mark.parametrize("node_size", [1, 3])
@pytest.mark.parametrize("depth", [0, 1, 6, 7, 9])
def test_deep_trees_take_the_same_paths_with_all_nodes_evaluated(depth, node_size, monkeypatch):
    layer, x = make(depth, node_size=node_size), torch.randn(200, 6, dtype=torch.float64)
    paths = layer.route(x)
    assert paths.shape == (200, 1, depth + 1) and paths.dtype == torch.long and (paths[..., 0] == 0).all()
    steps = paths[..., 1:] - 2 * paths[..., :-1]
    assert ((steps == 1) | (steps == 2)).all()
    monkeypatch.setattr(soft, "ALL_NODES_DEPTH", 99)
    assert torch.equal(layer.route(x), paths)


def test_paths_are_those_of_fff_with_the_same_weights():
    layer, x = make(depth=4), torch.randn(50, 6, dtype=torch.float64)
    weight, bias = layer.node_weight_in.transpose(0, 1), layer.node_bias_in.T
    assert torch.equal(layer.route(x)[..., :-1], ops.route(x, weight, bias, backend="reference"))
    assert (layer.trees, layer.depth) == (FFF(6, 4).trees, FFF(6, 4).depth)


@pytest.mark.parametrize("depth", [0, 1, 5, 10])
def test_the_mixture_sums_to_one(depth):
    layer, x = make(depth, torch.float32), torch.randn(3, 9, 6)
    with torch.no_grad():
        layer.node_weight_in *= 30  # decisions from even to very hard
    mixture = layer.mixture(x)
    assert mixture.shape == (3, 9, 2**depth) and (mixture >= 0).all()
    torch.testing.assert_close(mixture.sum(-1), torch.ones(3, 9))
    assert make(depth).bfloat16().mixture(x.bfloat16()).dtype == torch.float32


def test_soft_output_approaches_the_hard_one_as_node_weights_grow():
    layer, x = make(), torch.randn(100, 6, dtype=torch.float64)
    hard, distances = layer.eval()(x), []
    layer.train()
    for _ in range(4):
        distances.append((layer(x) - hard).abs().mean().item())
        with torch.no_grad():
            layer.node_weight_in *= 10
            layer.node_bias_in *= 10
    assert distances == sorted(distances, reverse=True) and distances[-1] < 0.01 * distances[0]


def test_node_entropy_is_the_batch_mean_of_bernoulli_entropies():
    layer, x = make(hardening=3.0), torch.randn(4, 5, 6, dtype=torch.float64)
    layer(x)
    p = torch.stack([torch.stack([logit(layer, t, i).sigmoid() for i in range(7)]) for t in x.view(-1, 6)])
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).mean(0)
    torch.testing.assert_close(layer.node_entropy, entropy)
    torch.testing.assert_close(layer.auxiliary_loss, 3 * entropy.sum())
    assert not layer.node_entropy.requires_grad


def test_entropy_of_very_hard_decisions_is_accurate_and_has_a_gradient():
    layer = make(1, torch.float32, hardening=1.0)
    for scale in (0.0, 20.0, 80.0, 1e4):
        nn.init.constant_(layer.node_weight_in, scale)
        for sign in (-1.0, 1.0):
            layer.zero_grad()
            layer(torch.full((1, 6), sign / 6))
            layer.auxiliary_loss.backward()
            z = torch.tensor(scale, dtype=torch.float64) + sign * layer.node_bias_in.double().item()
            exact = (-z.abs()).exp().log1p() + z.abs() * (-z.abs()).sigmoid()
            torch.testing.assert_close(layer.node_entropy[0].double(), exact, rtol=1e-4, atol=1e-37)
            assert layer.node_weight_in.grad.isfinite().all()


def test_hardening_reduces_the_entropy():
    layer, x = make(hardening=1.0), torch.randn(64, 6, dtype=torch.float64)
    optimizer = torch.optim.SGD(layer.parameters(), lr=2.0)
    entropies = []
    for _ in range(40):
        optimizer.zero_grad()
        layer(x)
        layer.auxiliary_loss.backward()
        optimizer.step()
        entropies.append(layer.node_entropy.sum().item())
    assert entropies == sorted(entropies, reverse=True) and entropies[-1] < 0.3 * entropies[0]


def test_without_hardening_the_auxiliary_loss_is_zero():
    layer = make()
    layer(torch.randn(3, 6, dtype=torch.float64))
    assert layer.auxiliary_loss.shape == () and layer.auxiliary_loss == 0 and (layer.node_entropy > 0).all()


@pytest.mark.parametrize("train_hard", [False, True])
def test_leaks_transpose_decisions_with_their_probability(train_hard):
    """The tree sends all tokens to its leftmost leaf, and the output of each leaf identifies it."""
    layer = make(2, region_leak=0.2, train_hard=train_hard)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(layer.node_bias_in, -1e3)
    with torch.no_grad():
        layer.leaf_bias_out[:, :4] = torch.eye(4)
    x = torch.randn(20000, 6, dtype=torch.float64)
    fraction = layer.train()(x)[:, :4].mean(0)
    expected = torch.tensor([0.8 * 0.8, 0.8 * 0.2, 0.2 * 0.8, 0.2 * 0.2], dtype=torch.float64)
    torch.testing.assert_close(fraction, expected, atol=4 * math.sqrt(0.25 / 20000), rtol=0)
    assert (layer.eval()(x)[:, 0] == 1).all(), "nothing leaks in inference"
    assert layer.node_entropy.max() < 1e-9, "leaks do not count as indecision"


def test_leaks_in_deep_hard_trees_change_outputs_but_not_routes():
    layer = make(8, region_leak=0.5, train_hard=True)
    for node in (layer.node_weight_in, layer.node_bias_in):
        nn.init.constant_(node, -1e3)
    x = torch.ones(4000, 6, dtype=torch.float64)
    assert len(layer.train()(x).unique(dim=0)) > 200
    assert len(layer.eval()(x).unique(dim=0)) == 1
    for training in (True, False):
        assert (layer.train(training).route(x)[..., -1] == 255).all()


def test_nodes_get_gradients_in_soft_mode_and_not_in_hard_mode():
    x = torch.randn(40, 6, dtype=torch.float64)
    for options, training, reached in (
        ({}, True, True),
        ({}, False, False),
        ({"train_hard": True}, True, False),
        ({"hardening": math.inf}, True, False),
    ):
        layer = make(node_size=2, **options).train(training)
        (layer(x).square().sum() + layer.auxiliary_loss).backward()
        for name, parameter in layer.named_parameters():
            if name.startswith("node_"):
                assert (parameter.grad is not None and (parameter.grad != 0).any()) == reached, (name, options)
            else:
                assert (parameter.grad != 0).any(), (name, options)


def test_soft_gradients_pass_gradcheck():
    layer, x = make(2, node_size=2, hardening=2.0, activation=nn.GELU), torch.randn(3, 6, dtype=torch.float64)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def loss(x, *parameters):
        output = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)
        return output, layer.auxiliary_loss

    inputs = [t.detach().requires_grad_() for t in (x, *parameters)]
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs, atol=1e-4)


def test_hard_gradients_are_those_of_the_chosen_leaves():
    layer, x = make().eval(), torch.randn(30, 6, dtype=torch.float64, requires_grad=True)
    used = (x, *layer._leaves())
    grads = torch.autograd.grad(layer(x).square().sum(), used)
    expected = torch.stack([forward_inference(layer, token)[0] for token in x])
    for grad, right in zip(grads, torch.autograd.grad(expected.square().sum(), used), strict=True):
        torch.testing.assert_close(grad, right)


def test_infinite_hardening_freezes_nodes_and_another_value_unfreezes_them():
    layer, x = make(hardening=math.inf), torch.randn(40, 6, dtype=torch.float64)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    before = copy.deepcopy(layer.state_dict())

    def step():
        optimizer.zero_grad()
        (layer(x).square().sum() + layer.auxiliary_loss).backward()
        optimizer.step()
        return {name for name, value in layer.state_dict().items() if not torch.equal(value, before[name])}

    leaves = {name for name in before if name.startswith("leaf_")}
    assert step() == leaves and layer.auxiliary_loss == 0 and (layer.node_entropy > 0).all()
    layer.hardening = 1.0
    assert step() == set(before)
    layer.hardening = math.inf
    before = copy.deepcopy(layer.state_dict())
    assert step() == leaves


def test_depth_0_is_a_feedforward_layer():
    tree, ordinary = make(0, activation=nn.GELU), FeedForward(6, 4, 5, activation=nn.GELU).double()
    weights = (tree.leaf_weight_in[0], tree.leaf_bias_in[0], tree.leaf_weight_out[0].T, tree.leaf_bias_out[0])
    ordinary.load_state_dict(dict(zip(ordinary.state_dict(), weights, strict=True)))
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(tree.train()(x), ordinary(x))
    torch.testing.assert_close(tree.eval()(x), ordinary(x))
    assert tree.auxiliary_loss == 0 and tree.node_entropy.shape == (0,)


def test_dropout_drops_neurons_of_leaves_only_in_training():
    for train_hard in (False, True):
        layer = make(dropout=1.0, train_hard=train_hard)
        with torch.no_grad():
            layer.leaf_bias_out.fill_(2.5)
        x = torch.randn(9, 6, dtype=torch.float64)
        torch.testing.assert_close(layer.train()(x), torch.full((9, 5), 2.5, dtype=torch.float64))
        assert not torch.allclose(layer.eval()(x), torch.tensor(2.5, dtype=torch.float64))


def test_usage_counts_tokens_per_node_and_leaf():
    layer, x = make(), torch.randn(4, 25, 6, dtype=torch.float64)
    nodes, leaves = layer.usage(x)
    leaf_of = torch.tensor([forward_inference(layer, token)[1] for token in x.view(-1, 6)])
    assert leaves.tolist() == leaf_of.bincount(minlength=8).tolist()
    assert nodes[0] == 100 and nodes[3:].tolist() == leaves.view(4, 2).sum(1).tolist()
    assert all(count.sum() == 0 for count in layer.usage(x[:0]))
    assert make(0).usage(x)[1].tolist() == [100]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(dtype, training):
    layer, x = make(4, train_hard=False).train(training), torch.randn(300, 6).to(dtype)
    reference = layer(x.double())
    output = copy.deepcopy(layer).to(dtype)(x)
    assert output.dtype == dtype
    near = (output.double() - reference).abs().amax(1) < 50 * torch.finfo(dtype).eps
    assert near.double().mean() > (0.99 if training else 0.9)  # near a boundary, rounding may change the leaf


@pytest.mark.parametrize("depth", [4, 8])
@pytest.mark.parametrize("node_size", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_autocast(depth, node_size, training):
    layer = make(depth, torch.float32, node_size=node_size, hardening=1.0).train(training)
    for dtype in (torch.float32, torch.bfloat16):  # the input may have autocast's dtype already
        x = torch.randn(20, 6).to(dtype).requires_grad_()
        with torch.autocast("cpu"):
            output = layer(x)
            assert layer.route(x).shape == (20, 1, depth + 1)
        assert output.dtype == torch.bfloat16 and layer.auxiliary_loss.dtype == torch.float32
        (output.float().sum() + layer.auxiliary_loss).backward()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_compiled_layer_gives_the_same_results(training):
    layer, x = make(2, hardening=1.0).train(training), torch.randn(9, 6, dtype=torch.float64)
    expected, loss = layer(x), layer.auxiliary_loss
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager")(x), expected)
    torch.testing.assert_close(layer.auxiliary_loss, loss)


def test_saved_and_copied_layers_give_the_same_outputs(tmp_path):
    layer, x = make(hardening=2.0, node_size=2), torch.randn(9, 6, dtype=torch.float64)
    output = layer(x)
    twin = copy.deepcopy(layer)  # with an auxiliary loss that is part of a graph
    assert torch.equal(twin(x), output) and twin.hardening == 2.0
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    loaded = make(node_size=2)
    loaded.load_state_dict(torch.load(tmp_path / "layer.pt"))
    assert torch.equal(loaded(x), output)
    assert set(layer.state_dict()) == {
        f"{part}_{what}_{where}" for part in ("node", "leaf") for what in ("weight", "bias") for where in ("in", "out")
    }


def test_parameters_are_initialised_like_linear_layers():
    layer = SoftFFF(400, 100, 5, 4, node_size=50)
    for parameters, fan_in in (
        ((layer.node_weight_in, layer.node_bias_in, layer.leaf_weight_in, layer.leaf_bias_in), 400),
        ((layer.leaf_weight_out,), 100),
        ((layer.node_weight_out,), 50),
    ):
        for parameter in parameters:
            assert parameter.abs().max().item() == pytest.approx(fan_in**-0.5, rel=0.02)
            assert parameter.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.1)


def test_widths_and_sizes_are_those_of_the_paper():
    layer = SoftFFF(6, 4, 5, 3, node_size=2)
    assert (layer.training_width, layer.inference_width) == (8 * 4, 4)
    assert (layer.training_size, layer.inference_size) == (8 * 4 + 7 * 2, 4 + 3 * 2)
    assert "depth=3" in repr(layer) and "hardening=0.0" in repr(layer)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"input_size": 0}, "input_size is 0"),
        ({"leaf_size": 0}, "leaf_size is 0"),
        ({"output_size": 1.5}, "output_size is 1.5"),
        ({"depth": -1}, "depth is -1; it should be an integer, from 0 to 30"),
        ({"node_size": 0}, "node_size is 0"),
        ({"dropout": 1.5}, "dropout is 1.5"),
        ({"region_leak": -0.1}, "region_leak is -0.1"),
        ({"hardening": -1.0}, "hardening is -1.0"),
        ({"hardening": math.nan}, "hardening is nan"),
        ({"hardening": 1.0, "train_hard": True}, "hardening is 1.0; with train_hard"),
        ({"activation": nn.ReLU()}, r"activation is ReLU\(\); it should be a class"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        SoftFFF(**{"input_size": 6, "leaf_size": 4, "output_size": 5, "depth": 2} | arguments)


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.randn(3, 7), r"shape \(3, 7\); it should be \(..., 6\)"),
        (torch.ones(6).long(), "dtype torch.int64"),
        (torch.tensor(1.0), r"shape \(\)"),
    ],
)
def test_errors_describe_the_input(x, message):
    for call in (make(), make().eval(), make().route, make().usage, make().mixture):
        with pytest.raises(ValueError, match=message):
            call(x)


def test_the_example_in_the_documentation_learns_with_one_leaf_per_token(capsys):
    page = (Path(__file__).parents[2] / "docs" / "soft.md").read_text(encoding="utf-8")
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1), {})
    mixed, one_leaf, entropy, leaves = map(float, re.findall(r"[\d.]+", capsys.readouterr().out))
    assert mixed > 0.93 and one_leaf > 0.88 and entropy < 0.2 and leaves > 2
