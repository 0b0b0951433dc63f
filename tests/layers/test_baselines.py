"""The feedforward layer and the mixture of experts against direct implementations of their formulas."""

import copy

import pytest
import torch
from torch import nn

from ultrafastbert import FeedForward, MixtureOfExperts


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(experts=5, k=2, **options):
    """Makes a layer with random gate and noise weights, which are initialised with zeros."""
    layer = MixtureOfExperts(6, 4, 3, experts, k, **options).double()
    nn.init.normal_(layer.gate_weight)
    nn.init.normal_(layer.noise_weight)
    return layer


def expert(layer, x, i):
    hidden = layer.activation(layer.expert_weight_in[i] @ x + layer.expert_bias_in[i])
    return hidden @ layer.expert_weight_out[i] + layer.expert_bias_out[i]


def gates(scores, k):
    """Equations 3 and 5 of arXiv 1701.06538: softmax over the k highest scores of one token, zero elsewhere."""
    kept = torch.full_like(scores, -torch.inf)
    for i in scores.argsort(descending=True)[:k]:
        kept[i] = scores[i]
    return kept.softmax(0)


def squared_variation(values):
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values) / mean**2


def test_feedforward_is_the_sequence_of_its_parts():
    layer = FeedForward(6, 4, 3, activation=nn.Tanh)
    sequence = nn.Sequential(layer.expand, nn.Tanh(), layer.contract)
    for shape in ((6,), (5, 6), (2, 3, 6), (0, 6)):
        x = torch.randn(shape)
        assert torch.equal(layer(x), sequence(x))
    assert layer.auxiliary_loss == 0 and layer.auxiliary_loss.shape == ()
    sizes = (layer.training_width, layer.inference_width, layer.training_size, layer.inference_size)
    assert sizes == (4, 4, 4, 4)


def test_feedforward_drops_neurons_only_in_training():
    layer, x = FeedForward(6, 4, 3, dropout=1.0), torch.randn(5, 6)
    torch.testing.assert_close(layer.train()(x), layer.contract.bias.expand(5, 3))
    assert not torch.allclose(layer.eval()(x), layer.contract.bias)


@pytest.mark.parametrize("shape", [(7, 6), (2, 3, 6), (6,), (1, 6), (0, 6)])
@pytest.mark.parametrize("experts, k", [(5, 2), (5, 1), (5, 5), (1, 1)])
def test_inference_is_the_weighted_sum_of_the_best_experts(shape, experts, k):
    layer, x = make(experts, k, activation=nn.GELU).eval(), torch.randn(shape, dtype=torch.float64)
    expected = []
    for token in x.view(-1, 6):
        weights = gates(layer.gate_weight @ token, k)
        assert (weights > 0).sum() == k and weights.sum().item() == pytest.approx(1)
        expected.append(sum(weights[i] * expert(layer, token, i) for i in range(experts)))
    output = layer(x)
    assert torch.equal(output, layer(x)), "there is no noise in inference"
    expected = torch.stack(expected) if expected else torch.zeros(0, 3, dtype=torch.float64)
    torch.testing.assert_close(output, expected.view(*shape[:-1], 3))


@pytest.mark.parametrize("experts, k", [(5, 2), (5, 1), (4, 4)])
def test_training_is_noisy_top_k_gating_with_its_losses(experts, k, monkeypatch):
    layer, x = make(experts, k, importance=0.3, load=0.7), torch.randn(40, 6, dtype=torch.float64)
    normal = torch.randn(40, experts, dtype=torch.float64)
    monkeypatch.setattr(torch, "randn_like", lambda like: normal)
    output = layer.train()(x)

    outputs, importance, load = [], [0.0] * experts, [0.0] * experts
    for token, noise in zip(x, normal, strict=True):
        clean, deviation = layer.gate_weight @ token, nn.functional.softplus(layer.noise_weight @ token)
        scores = clean + noise * deviation  # equation 4
        weights = gates(scores, k)
        outputs.append(sum(weights[i] * expert(layer, token, i) for i in range(experts)))
        for i in range(experts):
            importance[i] = importance[i] + weights[i]  # equation 6
            others = sorted((scores[j] for j in range(experts) if j != i), reverse=True)
            # equations 8 to 10; the k-th highest of fewer than k is minus infinity
            chosen = (
                torch.distributions.Normal(0, 1).cdf((clean[i] - others[k - 1]) / deviation[i]) if k < experts else 1.0
            )
            load[i] = load[i] + chosen
    torch.testing.assert_close(output, torch.stack(outputs))
    expected = 0.3 * squared_variation(importance) + 0.7 * torch.as_tensor(squared_variation(load))  # 7 and 11
    torch.testing.assert_close(layer.auxiliary_loss, expected)

    loss, right = output.square().sum() + layer.auxiliary_loss, torch.stack(outputs).square().sum() + expected
    for (name, _), grad, reference in zip(
        layer.named_parameters(),
        torch.autograd.grad(loss, layer.parameters(), retain_graph=True),
        torch.autograd.grad(right, layer.parameters()),
        strict=True,
    ):
        torch.testing.assert_close(grad, reference, msg=lambda text, name=name: f"{name}: {text}")


def test_training_draws_new_noise_in_every_pass():
    layer, x = make(), torch.randn(40, 6, dtype=torch.float64)
    assert not torch.equal(layer.train()(x), layer(x))


def test_a_new_gate_spreads_tokens_evenly_and_losses_restore_it():
    x = torch.randn(2000, 6)
    layer = MixtureOfExperts(6, 4, 3, experts=8, k=2)
    layer(x)
    assert layer.auxiliary_loss < 0.01
    with torch.no_grad():  # all tokens to the same two experts
        layer.gate_weight[:2] = 3 * torch.eye(6)[:1]
    x[:, 0] = x[:, 0].abs()
    optimizer = torch.optim.SGD([layer.gate_weight, layer.noise_weight], lr=5.0)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        layer(x)
        layer.auxiliary_loss.backward()
        optimizer.step()
        losses.append(layer.auxiliary_loss.item())
    assert losses[0] > 0.1 and losses[-1] < 0.2 * losses[0]


def test_losses_are_finite_without_noise_and_without_tokens():
    layer = make()
    nn.init.constant_(layer.noise_weight, -1e4)
    x = torch.rand(9, 6, dtype=torch.float64)
    for tokens in (x, x[:0]):
        layer.zero_grad()
        (layer(tokens).sum() + layer.auxiliary_loss).backward()
        assert layer.auxiliary_loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_precision_and_autocast(dtype, training):
    layer, x = make().train(training), torch.randn(9, 6)
    assert copy.deepcopy(layer).to(dtype)(x.to(dtype)).dtype == dtype
    with torch.autocast("cpu"):
        output = layer.float()(x.to(dtype))
    (output.float().sum() + layer.auxiliary_loss).backward()
    assert output.dtype == torch.bfloat16 and layer.gate_weight.grad.isfinite().all()


def test_copies_and_state_dicts_give_the_same_outputs():
    layer, x = make(), torch.randn(9, 6, dtype=torch.float64)
    layer(x)
    twin = copy.deepcopy(layer)
    other = make()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(twin.eval()(x), layer.eval()(x)) and torch.equal(other.eval()(x), layer(x))


def test_widths_and_sizes():
    layer = MixtureOfExperts(6, 4, 3, experts=8, k=2)
    assert (layer.training_width, layer.inference_width) == (32, 8)
    assert (layer.training_size, layer.inference_size) == (40, 16)
    assert "experts=8, k=2" in repr(layer)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"experts": 0}, "experts is 0"),
        ({"expert_size": 0}, "expert_size is 0"),
        ({"k": 0}, "k is 0; it should be an integer, from 1 to 4"),
        ({"k": 5}, "k is 5"),
        ({"importance": -0.1}, "importance is -0.1"),
        ({"load": float("nan")}, "load is nan"),
        ({"dropout": 2.0}, "dropout is 2.0"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        MixtureOfExperts(**{"input_size": 6, "expert_size": 4, "output_size": 3, "experts": 4} | arguments)


def test_errors_name_the_width_and_the_input():
    with pytest.raises(ValueError, match="width is 0"):
        FeedForward(6, 0, 3)
    for layer in (FeedForward(6, 4, 3), make()):
        with pytest.raises(ValueError, match=r"x has shape \(2, 5\)"):
            layer(torch.randn(2, 5))
