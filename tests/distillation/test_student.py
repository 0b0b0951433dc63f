"""A student has the teacher's weights, and layers of other sizes."""

import pytest
import torch

from tests.distillation.helpers import BERT, make_teacher
from ultrafastbert import (
    UltraFastBertForMaskedLM,
    UltraFastBertForQuestionAnswering,
    UltraFastBertForSequenceClassification,
    UltraFastBertForTokenClassification,
    UltraFastBertModel,
)
from ultrafastbert.distillation.student import build_student, replaced_layers

CLASSES = [
    UltraFastBertModel,
    UltraFastBertForMaskedLM,
    UltraFastBertForSequenceClassification,
    UltraFastBertForTokenClassification,
    UltraFastBertForQuestionAnswering,
]


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("options", [BERT, {"position_embedding": "rotary"}])
def test_a_student_whose_layers_stay_is_its_teacher(model_class, options):
    teacher = make_teacher(model_class, **options)
    student = build_student(teacher, ["dense-24"] * 2).eval()
    assert type(student) is model_class and replaced_layers(teacher, student) == []
    ids = torch.arange(5, 21).view(2, 8)
    with torch.no_grad():
        assert torch.equal(student(ids)[0], teacher(ids)[0])
    for name, tensor in teacher.state_dict().items():
        assert student.state_dict()[name].data_ptr() != tensor.data_ptr()


def test_only_layers_of_another_size_are_replaced():
    teacher = make_teacher(num_hidden_layers=12, **BERT)
    sizes = ["dense-24"] * 12
    sizes[1], sizes[11] = "1x2x3", "none"
    student = build_student(teacher, sizes)
    assert replaced_layers(teacher, student) == [1, 11]
    weights, before = student.state_dict(), teacher.state_dict()
    same = [name for name in before if name in weights and torch.equal(weights[name], before[name])]
    changed = {name for name in before if name not in same}
    assert changed == {name for name in before if "layers.1.feedforward." in name or "layers.11.feedforward." in name}


def test_the_decoder_stays_tied():
    student = build_student(make_teacher(UltraFastBertForMaskedLM, **BERT), ["1x2"] * 2)
    assert student.decoder.weight is student.model.embeddings.word_embeddings.weight
