"""Parameters of the layer, their initialisation, and errors; the operator is tested in tests/ops."""

import pytest
import torch

from ultrafastbert import ops
from ultrafastbert.layers.fff import FFF


def test_parameters_are_node_major():
    shapes = {name: tuple(p.shape) for name, p in FFF(6, depth=3, trees=2).named_parameters()}
    assert shapes == {"weight_in": (2, 15, 6), "bias_in": (2, 15), "weight_out": (2, 15, 6)}
    assert "bias_in" not in dict(FFF(6, depth=3, bias=False).named_parameters())


@pytest.mark.parametrize("depth, trees", [(0, 300), (7, 1), (3, 16)])
def test_initial_weights_spread_tokens_over_leaves(depth, trees):
    torch.manual_seed(0)
    layer, x = FFF(64, depth, trees), torch.nn.functional.layer_norm(torch.randn(4096, 64), (64,))
    pre_activation = x @ layer.weight_in.flatten(0, 1).T + layer.bias_in.flatten()
    assert pre_activation.std().item() == pytest.approx(1, abs=0.1)
    assert layer.weight_out.std().item() == pytest.approx(0.02, rel=0.1)
    for leaves in layer.route(x)[..., -1].T:
        fraction = leaves.bincount().double() / len(leaves)
        entropy = torch.special.entr(fraction).sum() / max(1, depth) / torch.tensor(2.0).log()
        assert depth == 0 or entropy > 0.8


@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_route_call_the_operator(bias):
    torch.manual_seed(0)
    layer, x = FFF(10, depth=4, trees=3, bias=bias, backend="gather"), torch.randn(2, 5, 10)
    expected = ops.fff(x, layer.weight_in, layer.bias_in, layer.weight_out, backend="gather")
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer.route(x), ops.route(x, layer.weight_in, layer.bias_in, backend="gather"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"hidden_size": 0, "depth": 1}, "hidden_size is 0"),
        ({"hidden_size": 4, "depth": -1}, "depth is -1; it should be an integer, from 0 to 30"),
        ({"hidden_size": 4, "depth": 70}, "depth is 70"),
        ({"hidden_size": 4, "depth": 2.5}, "depth is 2.5"),
        ({"hidden_size": 4, "depth": 1, "trees": 0}, "trees is 0"),
        ({"hidden_size": 4, "depth": 1, "backend": "magic"}, "backend is 'magic'"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        FFF(**arguments)


def test_repr_has_the_size():
    assert "trees=2, depth=3" in repr(FFF(4, depth=3, trees=2))


def test_parametrized_weights_are_used():
    layer = FFF(8, 3)
    x = torch.randn(5, 8)
    expected = ops.fff(x, layer.weight_in, layer.bias_in, 2 * layer.weight_out)

    class Double(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    torch.nn.utils.parametrize.register_parametrization(layer, "weight_out", Double())
    torch.testing.assert_close(layer(x), expected)
