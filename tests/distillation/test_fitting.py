"""Recording of inputs, and fits of single layers."""

import numpy as np
import pytest
import torch

from tests.distillation.helpers import BERT, make_teacher
from ultrafastbert.distillation.arguments import FitArguments
from ultrafastbert.distillation.fitting import LayerFit, SideBySide, input_weights, output_weights
from ultrafastbert.distillation.student import build_student
from ultrafastbert.distillation.texts import Sequences
from ultrafastbert.runs.interrupts import Interrupt

SIZES = ["none", "dense-3", "1x3", "3x1", "1x2x3"]


def sequences(count=40):
    generator = np.random.default_rng(0)
    return Sequences([generator.integers(5, 45, generator.integers(2, 15)) for _ in range(count)], 0, 8, 0)


def inputs(tokens=1500):
    """Channels of very different sizes and means."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, 16, generator=generator) * torch.logspace(-1, 1, 16)
    return x + torch.linspace(-2, 2, 16)


def fit(size, **options):
    teacher = make_teacher(**BERT)
    student = build_student(teacher, [size] * 2)
    torch.manual_seed(3)
    arguments = FitArguments(**({"steps": 200, "batch_size": 256, "lr": 0.01} | options))
    layer, dense = student.layers[1], teacher.layers[1].feedforward
    with torch.no_grad():
        return LayerFit(layer, inputs(), dense(inputs()), arguments), layer, dense


def states_of(model, texts, count):
    """The outputs of embeddings and layers at real tokens."""
    found = []
    with torch.no_grad():
        for number in range(count):
            batch = texts.batch(number)
            states = model(batch.input_ids, batch.attention_mask, output_hidden_states=True).hidden_states
            found.append(torch.stack(states)[:, batch.attention_mask.bool()])
    return torch.cat(found, dim=1)  # (layers + 1, tokens, hidden)


@pytest.mark.parametrize("options", [BERT, {"position_embedding": "rotary"}, {}], ids=["bert", "rotary", "sinusoidal"])
def test_teacher_and_student_run_side_by_side(tmp_path, options):
    teacher, texts = make_teacher(**options), sequences()
    student = build_student(teacher, ["1x2", "2x1"]).eval()
    both = SideBySide(teacher, student, texts, 100, tmp_path)
    expected = [states_of(model, texts, len(both.batches)) for model in (teacher, student)]
    assert 100 <= len(both.inputs) < 250
    for index in (0, 1):
        both.attend(index)
        with torch.no_grad():  # a layer that adds the targets has the states of the teacher
            after = both.states[1].float()
            output = student.layers[index].add_update(after, both.targets.float())
        both.feed_forward(index)
        torch.testing.assert_close(output, both.states[0].float(), rtol=0.05, atol=0.1)
        if options is BERT or index == 0:  # others have a final norm, which is no part of a layer
            for states, right in zip(both.states, expected, strict=True):
                torch.testing.assert_close(states.float(), right[index + 1], rtol=0.05, atol=0.1)


def test_a_short_text_is_repeated(tmp_path):
    teacher = make_teacher(**BERT)
    both = SideBySide(teacher, build_student(teacher, ["1x2"] * 2), sequences(8), 500, tmp_path)
    assert len(both.inputs) >= 500 and all(states.float().abs().sum(1).min() > 0 for states in both.states)


@pytest.mark.parametrize("size", SIZES)
def test_a_fitted_layer_maps_inputs_as_they_are(size):
    """After the weights have taken up the standardisation, the layer computes what the fit measured."""
    run, layer, dense = fit(size)
    with Interrupt() as interrupt:
        error = run.run(interrupt)
    x, y = inputs(), dense(inputs())
    with torch.no_grad():
        residual = (layer.feed_forward(x) - y)[run.train :]
        y = (y - y.mean(0))[run.train :]
    weights = run.weights[run.train :]
    measured = (weights * residual.square()).sum() / (weights * y.square()).sum()
    assert 0 < error < 1
    assert measured.item() == pytest.approx(error, rel=1e-3)


def test_larger_layers_explain_more():
    with Interrupt() as interrupt:
        errors = [fit(size, steps=400)[0].run(interrupt) for size in ("none", "dense-3", "dense-24")]
    assert errors[0] > errors[1] > errors[2]


def test_without_steps_the_layer_is_a_regression_by_channel():
    run, layer, _ = fit("none", steps=0)
    w, x, y = (tensor[: run.train] for tensor in (run.weights, run.x, run.y))
    with Interrupt() as interrupt:
        run.run(interrupt)
    slope = (w * x * y).sum(0) / (w * x * x).sum(0)
    torch.testing.assert_close(layer.skip.factor.data, slope * run.scale / run.width)


def test_a_layer_without_biases_is_fitted_too():
    """As in models whose projections have none: inputs are scaled, not centred."""
    teacher = make_teacher()
    student = build_student(teacher, ["dense-6"] * 2)
    y = teacher.layers[0].feedforward(inputs()).detach()
    run = LayerFit(student.layers[0], inputs(), y, FitArguments(steps=50, batch_size=64))
    assert not run.center.any()
    with Interrupt() as interrupt:
        assert 0 < run.run(interrupt) < 1


@pytest.mark.parametrize("size", SIZES)
def test_all_weights_are_either_inputs_or_outputs(size):
    layer = build_student(make_teacher(**BERT), [size] * 2).layers[0].feedforward
    known = [tensor for pair in input_weights(layer) for tensor in pair] + output_weights(layer)
    assert {id(tensor) for tensor in known} == ({id(p) for p in layer.parameters()} if layer is not None else set())


def test_a_signal_stops_the_fit():
    run, _, _ = fit("1x3")
    interrupt = Interrupt()
    interrupt.signal = 2
    assert run.run(interrupt) is None
