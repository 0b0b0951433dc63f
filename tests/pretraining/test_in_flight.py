"""Steps are read in order, late where asked, and their times add up to the time that passed."""

import pytest
import torch

from ultrafastbert.pretraining import in_flight as module
from ultrafastbert.pretraining.in_flight import Step, Steps, summarise


def launch(steps, number, start):
    steps.launched({"step": number}, 0.1 * number, 4, start, torch.tensor([float(number), 0.5]))


@pytest.mark.parametrize("at_most", [0, 1, 3])
def test_at_most_so_many_remain_unread(at_most):
    steps, read = Steps(at_most), []
    for number in range(1, 8):
        launch(steps, number, start=0.0)
        read += steps.read()
        assert len(read) == max(0, number - at_most)
    read += steps.read(everything=True)
    assert [step.where["step"] for step in read] == [step.loss for step in read] == list(range(1, 8))
    assert not list(steps.read(everything=True))


def test_a_step_lasts_from_the_end_of_the_one_before_or_from_its_own_beginning(monkeypatch):
    clock = iter([3.0, 5.0, 12.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    steps = Steps(at_most=1)
    launch(steps, 1, start=1.0)
    launch(steps, 2, start=2.0)  # while the first one runs
    launch(steps, 3, start=10.0)  # after a pause
    assert [step.seconds for step in steps.read(everything=True)] == [2.0, 2.0, 2.0]


def test_means_leave_out_what_is_not_finite():
    made = [
        Step({}, lr=0.1, rows=4, loss=loss, gradient_norm=norm, seconds=2.0)
        for loss, norm in ((1.0, 1.0), (float("inf"), 1.0), (3.0, float("nan")), (2.0, 7.0))
    ]
    assert summarise(made, sequence_length=10) == {
        "loss": 1.5,
        "gradient_norm": 7.0,
        "lr": 0.1,
        "batch_rows": 4,
        "tokens_per_second": 20.0,
    }
    only_bad = summarise(made[1:3], sequence_length=10)
    assert only_bad["loss"] is None and only_bad["gradient_norm"] is None
