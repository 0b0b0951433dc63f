"""A training step in parts: what is trained with what, at which positions, and which gradients are applied."""

import copy

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from ultrafastbert import FFF, UltraFastBertConfig, UltraFastBertForMaskedLM
from ultrafastbert.pretraining.arguments import TrainArguments
from ultrafastbert.pretraining.data.masking import MaskedBatch, Masker
from ultrafastbert.pretraining.step import masked_loss, prepare_training, to_device, update


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

    value, norm = update(model, optimizer, loss.detach(), 0.01, accelerator).tolist()
    assert (value, norm) == (loss.item(), pytest.approx(expected)) and norm > 0.01
    torch.testing.assert_close(model.decoder.weight, twin.decoder.weight, rtol=1e-6, atol=1e-7)
    assert all(parameter.grad is None for parameter in model.parameters())


class NothingToWaitFor(TorchDispatchMode):
    """Fails at what makes the host wait for a GPU: reading a number, and results whose size depends on numbers."""

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        name = operator._schema.name.removeprefix("aten::")
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2"), name
        return operator(*arguments, **(options or {}))


@pytest.mark.parametrize("backend", ["blocked", "dense"])
def test_the_host_does_not_wait_in_a_step(backend):
    torch.manual_seed(0)
    config = UltraFastBertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        fff_depth=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = UltraFastBertForMaskedLM(config)
    for layer in model.modules():
        if isinstance(layer, FFF):
            layer.backend = backend
    accelerator, wrapped, optimizer, autocast = prepare(model, precision="bf16")
    special = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    masker = Masker(0.25, 40, special, seed=0)
    rows = torch.randint(5, 40, (3, 16))
    for place in (0, 3):  # at the first step the optimiser makes its state
        with NothingToWaitFor():
            loss = masked_loss(wrapped, masker(to_device(rows, accelerator.device), place), autocast)
            accelerator.backward(loss)
            values = update(model, optimizer, loss.detach(), 0.5, accelerator)
        assert values.isfinite().all()
    with NothingToWaitFor(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        values[0].item()


@pytest.mark.parametrize("spoil_gradient", [True, False])
def test_what_is_not_finite_is_not_applied(model, spoil_gradient):
    accelerator, wrapped, optimizer, autocast = prepare(model)
    loss = masked_loss(wrapped, batch(), autocast)
    accelerator.backward(loss)
    update(model, optimizer, loss.detach(), 0.5, accelerator)  # the optimiser has a state now
    before = copy.deepcopy(model.state_dict())
    loss = masked_loss(wrapped, batch(), autocast)
    accelerator.backward(loss)
    if spoil_gradient:
        model.decoder.weight.grad[3, 4] = torch.inf
    state = copy.deepcopy(optimizer.state_dict())
    value, norm = update(
        model, optimizer, loss.detach() if spoil_gradient else loss.detach() * torch.nan, 0.5, accelerator
    ).tolist()
    assert norm == torch.inf if spoil_gradient else value != value
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict()["state"], state["state"], rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())
