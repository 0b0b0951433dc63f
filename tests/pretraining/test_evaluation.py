"""Validation metrics against their definitions."""

import math

import pytest
import torch
from accelerate import Accelerator

from ultrafastbert.modeling_ultrafastbert import UltraFastBertForMaskedLM
from ultrafastbert.pretraining.arguments import ModelArguments, TrainArguments
from ultrafastbert.pretraining.data.masking import Masker
from ultrafastbert.pretraining.evaluation import LeafCounter, evaluate
from ultrafastbert.pretraining.step import TrainingStep

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


@pytest.fixture
def model():
    torch.manual_seed(0)
    arguments = ModelArguments(fff="2x3", hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    return UltraFastBertForMaskedLM(arguments.build_config(40, 16))


def sequences(count=10):
    return torch.randint(5, 40, (count, 16), generator=torch.Generator().manual_seed(0))


def step_of(model):
    return TrainingStep(model, TrainArguments(max_steps=1), Accelerator(cpu=True), in_bf16=False)


def test_loss_and_accuracy_are_means_over_all_masked_tokens(model):
    masker, data = Masker(0.25, 40, SPECIAL, seed=3), sequences()
    result = evaluate(step_of(model), data, masker, 4)
    losses, correct = [], []
    model.eval()
    for start in (0, 4, 8):  # the last batch is smaller; its tokens have the same weight
        batch = masker(data[start : start + 4], place=start)
        logits = model(batch.input_ids).logits.gather(1, batch.masked_positions[..., None].expand(-1, -1, 40))
        labels = data[start : start + 4].gather(1, batch.masked_positions)
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none"))
        correct.append((logits.argmax(-1) == labels).flatten())
    assert result.loss == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)
    assert result.accuracy == pytest.approx(torch.cat(correct).double().mean().item())
    assert len(result.leaves_used) == len(result.leaf_entropy) == 2


def test_evaluation_is_repeatable_and_keeps_the_model_in_training_mode(model):
    masker, step = Masker(0.25, 40, SPECIAL, seed=3), step_of(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    results = [evaluate(step, sequences(), masker, 5) for _ in range(2)]
    assert results[0] == results[1] and model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_leaf_use_of_known_trees(model):
    first, second = (layer.feedforward for layer in model.model.layers)
    with torch.no_grad():
        first.weight_in.zero_()  # every decision goes left: one leaf of eight
        first.bias_in.fill_(-1)
        second.weight_in.normal_()
        second.bias_in.zero_()
    with LeafCounter(model) as leaves, torch.no_grad():
        model(sequences(64))
    used, entropy = leaves.usage()
    assert used[0] == 1 / 8 and entropy[0] == 0
    fractions = leaves.counts[1].double() / leaves.counts[1].sum(1, keepdim=True)
    by_hand = [-sum(p * math.log(p) for p in tree if p > 0) / math.log(8) for tree in fractions.tolist()]
    assert entropy[1] == pytest.approx(sum(by_hand) / 2) and 0 < entropy[1] <= 1
    assert leaves.counts[0].sum(1).tolist() == [64 * 16] * 2  # every token reaches one leaf of each tree
    with torch.no_grad():
        model(sequences(64))
    assert leaves.counts[0].sum(1).tolist() == [64 * 16] * 2  # no counting outside of the context


@pytest.mark.parametrize("fff", ["dense-8", "8x0", "none"])
def test_layers_without_decisions_are_not_counted(fff):
    arguments = ModelArguments(fff=fff, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    assert LeafCounter(UltraFastBertForMaskedLM(arguments.build_config(40, 16))).usage() == ([], [])
