"""The loss and its parts."""

import json

import pytest
import torch
import torch.nn.functional as F

from tests.distillation.helpers import BERT, make_teacher, make_tokenizer
from ultrafastbert import (
    UltraFastBertForMaskedLM,
    UltraFastBertForMultipleChoice,
    UltraFastBertForQuestionAnswering,
    UltraFastBertForSequenceClassification,
    UltraFastBertForTokenClassification,
    UltraFastBertModel,
)
from ultrafastbert.distillation.objective import Objective, divergence, find_pooling, unexplained
from ultrafastbert.distillation.student import build_student
from ultrafastbert.distillation.texts import TextBatch
from ultrafastbert.utils.errors import UserError

HEADS = [
    UltraFastBertForMaskedLM,
    UltraFastBertForSequenceClassification,
    UltraFastBertForTokenClassification,
    UltraFastBertForQuestionAnswering,
]


def batch(padding=0):
    """Sequences of 8 and 5 tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 45, (2, 8), generator=generator)
    mask = (torch.arange(8) < torch.tensor([8, 5])[:, None]).long()
    return TextBatch(F.pad(ids * mask, (0, padding)), F.pad(mask, (0, padding)))


def outputs(model, pooling=None, padding=0):
    objective = Objective(model, make_tokenizer(), pooling)
    return objective, objective.run(model, objective.prepare(batch(padding), seed=1))


@pytest.mark.parametrize("model_class", [UltraFastBertModel, *HEADS])
@pytest.mark.parametrize("pooling", [None, "mean", "cls"])
def test_the_loss_is_zero_for_the_teacher_itself_only(model_class, pooling):
    teacher = make_teacher(model_class, **BERT)
    objective, target = outputs(teacher, pooling)
    same = build_student(teacher, ["dense-24"] * 2).eval()
    inputs = objective.prepare(batch(), seed=1)
    assert objective.loss(objective.run(same, inputs), target).item() == pytest.approx(0, abs=1e-5)
    student = build_student(teacher, ["1x1x2"] * 2)
    loss = objective.loss(objective.run(student, inputs), target)
    assert loss.item() > 0.01
    loss.backward()
    trained = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.any()}
    assert "model.layers.0.skip.bias" in trained or "layers.0.skip.bias" in trained


@pytest.mark.parametrize("model_class", [UltraFastBertModel, UltraFastBertForTokenClassification])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_does_not_matter(model_class, pooling):
    teacher = make_teacher(model_class, **BERT)
    student = build_student(teacher, ["none"] * 2).eval()
    losses = []
    for padding in (0, 7):
        objective, target = outputs(teacher, pooling, padding)
        inputs = objective.prepare(batch(padding), seed=1)
        losses.append(objective.loss(objective.run(student, inputs), target))
    torch.testing.assert_close(losses[0], losses[1])


def test_sentence_vectors():
    model = make_teacher(**BERT)
    states = model(batch().input_ids, batch().attention_mask).last_hidden_state
    mean = torch.stack([states[0].mean(0), states[1, :5].mean(0)])
    torch.testing.assert_close(outputs(model, "mean")[1].vectors, F.normalize(mean, dim=-1))
    torch.testing.assert_close(outputs(model, "cls")[1].vectors, F.normalize(states[:, 0], dim=-1))


def test_tokens_are_masked_for_a_masked_language_model():
    objective, found = outputs(make_teacher(UltraFastBertForMaskedLM, **BERT))
    ids, masked = batch().input_ids, objective.prepare(batch(), seed=1)["input_ids"]
    assert (masked == 4).any() and ((masked == 4) | (masked == ids)).all() and (masked[ids == 0] == 0).all()
    assert torch.equal(masked, objective.prepare(batch(), seed=1)["input_ids"])
    assert found.logits.shape == ((masked == 4).sum(), 45)
    assert torch.equal(outputs(make_teacher(**BERT))[0].prepare(batch(), seed=1)["input_ids"], ids)


def test_unexplained_and_divergence_by_hand():
    teacher = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    mean = teacher.mean(1, keepdim=True).expand_as(teacher)
    torch.testing.assert_close(unexplained(mean, teacher), torch.ones(2))
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    expected = (p * (p / q).log()).sum() / 2
    torch.testing.assert_close(divergence(q.log(), p.log()), expected)
    assert divergence(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [2.0]])).item() == 2


def test_multiple_choice_is_refused():
    with pytest.raises(UserError, match="distil the encoder"):
        Objective(make_teacher(UltraFastBertForMultipleChoice, **BERT), make_tokenizer(), None)


def test_a_masked_language_model_needs_a_mask_token():
    tokenizer = make_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(UserError, match="mask token"):
        Objective(make_teacher(UltraFastBertForMaskedLM, **BERT), tokenizer, None)


@pytest.mark.parametrize(
    "content, pooling",
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "include_prompt": True}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": ["cls"]}, "cls"),
    ],
)
def test_pooling_of_sentence_transformers(tmp_path, content, pooling):
    assert find_pooling(tmp_path) is None
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(content))
    assert find_pooling(tmp_path) == pooling


@pytest.mark.parametrize(
    "content", [{"pooling_mode_max_tokens": True}, {"pooling_mode": ["mean", "cls"]}, {"pooling_mode": "lasttoken"}]
)
def test_other_poolings_are_refused(tmp_path, content):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="another pooling than mean or cls; set pooling"):
        find_pooling(tmp_path)
