"""Training steps: the loss, its precision, and the update of the weights."""

import copy

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from ultrafastbert import FFF, UltraFastBertConfig, UltraFastBertForMaskedLM, modeling_ultrafastbert
from ultrafastbert.pretraining.arguments import TrainArguments
from ultrafastbert.pretraining.data.masking import MaskedBatch, Masker
from ultrafastbert.pretraining.step import TrainingStep, to_device
from ultrafastbert.runs.optimizer import build_optimizer
from ultrafastbert.utils import inputs


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


def prepare(model, in_bf16=False, **options):
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    return TrainingStep(model.eval(), TrainArguments(max_steps=1, **options), accelerator, in_bf16)


def test_the_loss_is_the_mean_over_the_masked_positions(model):
    step = prepare(model)
    assert model.training
    given = batch()
    logits = model(given.input_ids).logits.gather(1, given.masked_positions[..., None].expand(-1, -1, 30))
    labels = given.labels.gather(1, given.masked_positions)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(step.loss(given), expected)


@pytest.mark.parametrize("in_bf16, dtype", [(False, torch.float32), (True, torch.bfloat16)])
def test_matrix_products_have_the_precision_asked_for(model, in_bf16, dtype):
    step = prepare(model, in_bf16)
    seen = []
    model.decoder.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    step.loss(batch())
    assert seen == [dtype] and next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("compile, calls", [(True, 1), (False, 0), (None, 0)])
def test_models_are_compiled_where_asked(model, monkeypatch, compile, calls):
    compiled = []
    monkeypatch.setattr(type(model), "compile", lambda self: compiled.append(self))
    prepare(model, compile=compile)
    assert len(compiled) == calls


def test_an_update_clips_applies_and_clears(model):
    step = prepare(model, lr=1.0, max_grad_norm=0.01)
    twin = copy.deepcopy(model)
    plain = torch.optim.AdamW(twin.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-12, weight_decay=0.01)
    loss = step.accumulate(batch())
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        other.grad = parameter.grad.clone()
    expected = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.01).item()
    plain.step()

    value, norm = step.update(loss, lr=1e-3).tolist()
    assert (value, norm) == (loss.item(), pytest.approx(expected)) and norm > 0.01
    torch.testing.assert_close(model.decoder.weight, twin.decoder.weight, rtol=1e-6, atol=1e-7)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_muon_updates_the_matrices_of_layers_and_adamw_the_rest(model):
    step = prepare(model, optimizer="muon", lr=1e-3, muon_lr=0.05, weight_decay=0.1)
    twin = copy.deepcopy(model)
    loss = step.accumulate(batch())
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        other.grad = parameter.grad.clone()
    torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
    matrices = [
        layer.attention.get_parameter(f"{n}.weight") for layer in twin.model.layers for n in ("qkv_proj", "o_proj")
    ]
    torch.optim.Muon(matrices, lr=0.025, weight_decay=0.1).step()  # half of its peak, as AdamW's
    for parameter in matrices:
        parameter.grad = None
    build_optimizer(twin, lr=5e-4, betas=(0.9, 0.98), eps=1e-12, weight_decay=0.1).step()

    step.update(loss, lr=5e-4)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-6, atol=1e-7)


class NoWaiting(TorchDispatchMode):
    """Fails at operations for which the host waits for a GPU: reading a number, results of data-dependent shape."""

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        name = operator._schema.name.removeprefix("aten::")
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2"), name
        return operator(*arguments, **(options or {}))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("backend", ["blocked", "dense"])
def test_the_host_does_not_wait_in_a_step(backend, optimizer, monkeypatch):
    # The tensors stand for those of a GPU, whose values are not checked.
    monkeypatch.setattr(inputs, "check_values", lambda *_: None)
    monkeypatch.setattr(modeling_ultrafastbert, "check_values", lambda *_: None)
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
    step = prepare(model, in_bf16=True, optimizer=optimizer)
    special = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    masker = Masker(0.25, 40, special, seed=0)
    sequences = torch.randint(5, 40, (3, 16))
    for place in (0, 3):  # the first step creates the state of the optimiser
        with NoWaiting():
            loss = step.accumulate(masker(to_device(sequences, step.accelerator.device), place))
            values = step.update(loss, lr=1e-3)
        assert values.isfinite().all()
    with NoWaiting(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        values[0].item()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("spoil_gradient", [True, False])
def test_a_loss_or_gradient_that_is_not_finite_changes_nothing(model, spoil_gradient, optimizer):
    step = prepare(model, optimizer=optimizer)
    step.update(step.accumulate(batch()), lr=1e-3)  # the optimiser has a state now
    before = copy.deepcopy(model.state_dict())
    loss = step.accumulate(batch())
    if spoil_gradient:
        model.decoder.weight.grad[3, 4] = torch.inf
    states = [copy.deepcopy(optimizer.state_dict()["state"]) for optimizer in step.optimizers]
    value, norm = step.update(loss if spoil_gradient else loss * torch.nan, lr=1e-3).tolist()
    assert norm == torch.inf if spoil_gradient else value != value
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    for optimizer, state in zip(step.optimizers, states, strict=True):
        assert state
        torch.testing.assert_close(optimizer.state_dict()["state"], state, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_of_micro_batches_add_up_to_those_of_the_batch(model):
    step = prepare(model)
    whole = batch()
    expected = step.accumulate(whole)
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    step.discard()
    assert all(parameter.grad is None for parameter in model.parameters())
    parts = [MaskedBatch(*(tensor[index : index + 1] for tensor in whole)) for index in range(3)]
    loss = sum(step.accumulate(part, count=3, last=index == 2) for index, part in enumerate(parts))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], gradients)
