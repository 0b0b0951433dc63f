import math

import pytest
import torch
from torch import nn

from ultrafastbert import FeedForward, SoftFFF
from ultrafastbert.experiments.arguments import LayerTrainingArguments
from ultrafastbert.experiments.images import load_images, split_images
from ultrafastbert.experiments.training import accuracy, augment_images, train_classifier


@pytest.fixture(scope="module")
def data():
    return split_images(load_images("digits"), seed=0)


def tree(**options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), SoftFFF(64, 8, 10, 2, **options))


def plain(width=16):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), FeedForward(64, width, 10))


def test_the_outcome_agrees_with_the_history(data):
    model = tree(hardening=0.1)
    outcome = train_classifier(model, data, LayerTrainingArguments(epochs=12, patience=12), seed=0)
    for name, part in (("memorisation", "train"), ("generalisation", "validation")):
        curve = outcome["history"][part]
        assert len(curve) == outcome["epochs"] == 12
        assert outcome[f"{name}_epoch"] == 1 + curve.index(max(curve))
    assert outcome["memorisation"] == pytest.approx(max(outcome["history"]["train"]), abs=1e-6)
    assert outcome["validation"] == pytest.approx(max(outcome["history"]["validation"]), abs=1e-6)
    # the model has the weights of the best validation accuracy
    assert accuracy(model, data["validation"]) == outcome["validation"]
    assert accuracy(model, data["test"]) == outcome["generalisation"]


def test_the_test_images_change_nothing_but_their_accuracy(data):
    other = data | {"test": (data["test"][0][:7], data["test"][1][:7].flip(0))}
    arguments = LayerTrainingArguments(epochs=5, patience=5)
    first, second = (train_classifier(plain(), parts, arguments, seed=0) for parts in (data, other))
    assert first.pop("generalisation") != second.pop("generalisation")
    assert first == second


def test_a_training_is_reproducible_and_the_seed_determines_the_order(data):
    arguments = LayerTrainingArguments(epochs=4, patience=4)
    first, again, other = (train_classifier(tree(), data, arguments, seed)["history"]["loss"] for seed in (0, 0, 1))
    assert first == again != other


def test_accuracy_is_measured_with_hard_decisions(data):
    model = tree()
    hard = accuracy(model, data["test"])
    with torch.no_grad():
        logits = model.train()(data["test"][0])
        soft = logits.argmax(-1).eq(data["test"][1]).float().mean().item()
        path = model[1].route(data["test"][0].flatten(1))
    assert path.shape == (len(data["test"][0]), 1, 3)
    expected = model.eval()(data["test"][0]).argmax(-1).eq(data["test"][1]).float().mean().item()
    assert hard == pytest.approx(expected) and hard != soft


def test_it_stops_when_neither_accuracy_improves(data):
    outcome = train_classifier(plain(), data, LayerTrainingArguments(lr=1e-12, epochs=50, patience=3), seed=0)
    assert outcome["epochs"] == 4 and outcome["generalisation_epoch"] == 1
    both = train_classifier(plain(), data, LayerTrainingArguments(epochs=200, patience=2), seed=0)
    last = max(both["memorisation_epoch"], both["generalisation_epoch"])
    assert both["epochs"] == last + 2


def test_the_learning_rate_is_halved_on_plateaus(data, monkeypatch):
    rates = []
    step = torch.optim.SGD.step

    def note(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", note)
    train_classifier(
        plain(), data, LayerTrainingArguments(lr=1e-6, batch_size=4096, epochs=7, patience=9, plateau=2), seed=0
    )
    # at this rate nothing changes, so the first epoch is the best
    assert rates == [1e-6] * 3 + [5e-7] * 2 + [2.5e-7] * 2


def test_hardening_lowers_the_entropy(data):
    arguments = LayerTrainingArguments(epochs=10, patience=10)
    soft, hard = (train_classifier(tree(hardening=h), data, arguments, 0)["history"]["entropy"] for h in (0.0, 3.0))
    assert len(soft) == 10 and len(soft[0]) == 1  # epochs, trees
    assert hard[-1][0][0] < 0.1 < soft[-1][0][0] <= math.log(2)
    for mean, least, greatest in (epoch[0] for epoch in soft):
        assert 0 <= least <= mean <= greatest <= math.log(2) + 1e-4


def test_the_nodes_of_a_frozen_tree_do_not_change(data):
    model = tree(hardening=math.inf)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    outcome = train_classifier(model, data, LayerTrainingArguments(epochs=3, patience=3), seed=0)
    changed = {name.removeprefix("1.") for name, t in model.named_parameters() if not torch.equal(t, before[name])}
    assert changed == {"leaf_weight_in", "leaf_bias_in", "leaf_weight_out", "leaf_bias_out"}
    assert "diverged" not in outcome


def test_leaves_that_training_images_reach_are_counted(data):
    model = tree()
    outcome = train_classifier(model, data, LayerTrainingArguments(epochs=3, patience=3), seed=0)
    reached = model[1].route(data["train"][0].flatten(1))[..., -1].unique()
    assert outcome["leaves_used"] == [len(reached)]
    with torch.no_grad():
        model[1].node_bias_in.fill_(-1e6)  # every decision is left
    frozen = train_classifier(model, data, LayerTrainingArguments(lr=1e-9, epochs=1, patience=1), seed=0)
    assert frozen["leaves_used"] == [1] and not model[1]._forward_pre_hooks
    assert train_classifier(plain(), data, LayerTrainingArguments(epochs=1, patience=1), seed=0)["leaves_used"] == []


def test_divergence_is_a_result(data):
    outcome = train_classifier(plain(), data, LayerTrainingArguments(lr=1e30, epochs=9, patience=9), seed=0)
    assert "the loss of epoch 1 is" in outcome["diverged"] and "generalisation" not in outcome


def test_an_exception_of_check_ends_the_training(data):
    steps = []

    def check():
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_classifier(plain(), data, LayerTrainingArguments(epochs=9, patience=9), seed=0, check=check)
    assert len(steps) == 3


def test_augmented_images_are_the_same_images_moved():
    torch.manual_seed(0)
    images = torch.zeros(200, 2, 33, 33)
    images[:, :, 12:21, 12:21] = 1  # a square in the middle, which keeps its size approximately
    moved = augment_images(images)
    assert moved.shape == images.shape
    area = moved.sum(dim=(1, 2, 3)) / images.sum(dim=(1, 2, 3))
    assert 0.8 < area.min() < 0.95 and 1.05 < area.max() < 1.25
    torch.testing.assert_close(moved[:, 0], moved[:, 1])  # channels move together
    rows = torch.arange(33.0)
    centre = (moved[:, 0] * rows[:, None]).sum((1, 2)) / moved[:, 0].sum((1, 2)) - 16
    assert 2 < centre.abs().max() < 6 and abs(centre.mean()) < 0.7  # up to a tenth of the side, to both sides


def test_half_of_the_augmented_images_are_flipped():
    torch.manual_seed(0)
    images = torch.zeros(400, 1, 32, 32)
    images[:, :, :16] = 1
    top = augment_images(images)[:, 0, 4:12, 12:20].mean(dim=(1, 2)) > 0.5
    assert 0.4 < top.float().mean() < 0.6
