"""Sizes by layer, and options that are refused."""

import pytest

from ultrafastbert.distillation.arguments import DistillArguments, check_teacher_sizes, read_sizes, sizes_by_layer
from ultrafastbert.utils.sizes import DenseSize, TreeSize

DENSE = [DenseSize(64)] * 4


@pytest.mark.parametrize(
    "text, sizes",
    [
        ("1x7x32", ["1x7x32"] * 4),
        ("none", ["none"] * 4),
        ("dense", ["dense-64"] * 4),
        ("0:dense,1-2:8x8,3:1x11", ["dense-64", "8x8", "8x8", "1x11"]),
        ("3:none, 0-2:dense-8", ["dense-8", "dense-8", "dense-8", "none"]),
    ],
)
def test_sizes_by_layer(text, sizes):
    assert sizes_by_layer(text, DENSE) == sizes


@pytest.mark.parametrize(
    "text, words",
    [
        ("0-3:1x2,2:1x3", ["layer 2", "two sizes"]),
        ("0-4:1x2", ["layer 4", "layers are 0 to 3"]),
        ("0-1:1x2", ["layers 2, 3 have no size"]),
    ],
)
def test_layers_that_do_not_fit_the_model_are_refused(text, words):
    with pytest.raises(ValueError) as error:
        sizes_by_layer(text, DENSE)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("text", ["1y2", "dense-", "0:", "0:1x2,", "a:1x2", "1-2-3:1x2", "1x2,1x3"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="fff"):
        read_sizes(text)


def test_the_teacher_should_be_dense():
    check_teacher_sizes(DENSE)
    with pytest.raises(ValueError, match="layer 1 is 1x3; a model whose feedforward layers are all dense"):
        check_teacher_sizes([DenseSize(8), TreeSize(1, 3)])


@pytest.mark.parametrize(
    "options, match",
    [
        ({"model": "x"}, "no budget is given"),
        ({"budget_hours": 1.0}, "model is ''"),
        ({"model": "x", "budget_hours": 0.0}, "budget_hours is 0.0"),
        ({"model": "x", "budget_hours": 1.0, "fff": "2x3x4"}, "fff is '2x3x4'"),
        ({"model": "x", "budget_hours": 1.0, "seed": -1}, "seed is -1"),
    ],
)
def test_refused_options(options, match):
    with pytest.raises(ValueError, match=match):
        DistillArguments(**options)
