"""A training step in parts: what is trained with what, at which positions, and which gradients are applied."""

import copy

import pytest
import torch
from accelerate import Accelerator

from ultrafastbert import UltraFastBertConfig, UltraFastBertForMaskedLM
from ultrafastbert.data.masking import MaskedBatch
from ultrafastbert.training.arguments import TrainArguments
from ultrafastbert.training.step import masked_loss, prepare_training, update


@pytest.fixture
def model():
    torch.manual_seed(0)
    return UltraFastBertForMaskedLM(
        UltraFastBertConfig(
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=8,
            fff_depth=2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def batch():
    tokens = torch.arange(5, 29).view(3, 8)
    return MaskedBatch(tokens, tokens.flip(1), torch.tensor([[1, 4], [0, 7], [2, 3]]))


def prepare(model, **options):
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    return accelerator, *prepare_training(model.eval(), TrainArguments(max_steps=1, **options), accelerator)


def test_the_loss_is_the_mean_over_the_masked_positions(model):
    _, wrapped, _, autocast = prepare(model)
    assert model.training
    given = batch()
    logits = model(given.input_ids).logits.gather(1, given.masked_positions[..., None].expand(-1, -1, 30))
    labels = given.labels.gather(1, given.masked_positions)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(masked_loss(wrapped, given, autocast), expected)


@pytest.mark.parametrize("precision, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_the_products(model, precision, dtype):
    _, wrapped, _, autocast = prepare(model, precision=precision)
    seen = []
    model.decoder.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    masked_loss(wrapped, batch(), autocast)
    assert seen == [dtype] and next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("compile, calls", [(True, 1), (False, 0), (None, 0)])
def test_models_are_compiled_where_asked(model, monkeypatch, compile, calls):
    compiled = []
    monkeypatch.setattr(type(model), "compile", lambda self: compiled.append(self))
    prepare(model, compile=compile)
    assert len(compiled) == calls


def test_an_update_clips_applies_and_clears(model):
    accelerator, wrapped, optimizer, autocast = prepare(model, lr=1e-3)
    twin = copy.deepcopy(model)
    plain = torch.optim.AdamW(twin.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-12, weight_decay=0.01)
    loss = masked_loss(wrapped, batch(), autocast)
    accelerator.backward(loss)
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        other.grad = parameter.grad.clone()
    expected = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.01).item()
    plain.step()

    value, norm = update(model, optimizer, loss.detach(), 0.01, accelerator)
    assert (value, norm) == (loss.item(), pytest.approx(expected)) and norm > 0.01
    torch.testing.assert_close(model.decoder.weight, twin.decoder.weight, rtol=1e-6, atol=1e-7)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("spoil_gradient", [True, False])
def test_what_is_not_finite_is_not_applied(model, spoil_gradient):
    accelerator, wrapped, optimizer, autocast = prepare(model)
    before = copy.deepcopy(model.state_dict())
    loss = masked_loss(wrapped, batch(), autocast)
    accelerator.backward(loss)
    if spoil_gradient:
        model.decoder.weight.grad[3, 4] = torch.inf
    _, norm = update(
        model, optimizer, loss.detach() if spoil_gradient else loss.detach() * torch.nan, 0.5, accelerator
    )
    assert (norm == torch.inf) == spoil_gradient
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())
