"""Results of steps are read in order, late if asked, and their times add up to the time that passed."""

import pytest
import torch

from ultrafastbert.pretraining import in_flight as module
from ultrafastbert.pretraining.in_flight import StepsInFlight


def launch(steps, number, start):
    steps.add({"step": number}, 0.1 * number, 4, start, torch.tensor([float(number), 0.5]))


@pytest.mark.parametrize("max_unread", [0, 1, 3])
def test_at_most_this_many_steps_remain_unread(max_unread):
    steps, read = StepsInFlight(max_unread), []
    for number in range(1, 8):
        launch(steps, number, start=0.0)
        read += steps.read()
        assert len(read) == max(0, number - max_unread)
    read += steps.read(everything=True)
    assert [step.position["step"] for step in read] == [step.loss for step in read] == list(range(1, 8))
    assert not list(steps.read(everything=True))


def test_a_step_begins_after_the_one_before_or_when_it_is_queued(monkeypatch):
    clock = iter([3.0, 5.0, 12.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    steps = StepsInFlight(max_unread=1)
    launch(steps, 1, start=1.0)
    launch(steps, 2, start=2.0)  # while the first one runs
    launch(steps, 3, start=10.0)  # after a pause
    assert [step.seconds for step in steps.read(everything=True)] == [2.0, 2.0, 2.0]
