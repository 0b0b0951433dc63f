"""What follows from the share of the budget that is spent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultrafastbert.pretraining.arguments import TrainArguments
from ultrafastbert.pretraining.schedule import Progress, micro_batches, triangle


def test_triangle_rises_to_its_peak_and_falls_to_zero():
    assert [triangle(share, 0.5) for share in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.5, 1, 0.5, 0]
    assert triangle(0.25, 0.25) == 1 and triangle(1, 0.25) == 0
    assert triangle(0, 0) == 1 and triangle(1, 1) == 1


@given(share=st.floats(0, 1), peak=st.floats(0, 1))
def test_triangle_stays_within_zero_and_one(share, peak):
    assert 0 <= triangle(share, peak) <= 1


@pytest.mark.parametrize(
    "progress, share",
    [
        (Progress(step=25), 0.25),
        (Progress(step=25, seconds=1800), 0.5),
        (Progress(step=25, tokens=900), 0.9),
        (Progress(step=300), 1.0),
    ],
)
def test_the_budget_closest_to_its_end_counts(progress, share):
    assert progress.share_of_budget(TrainArguments(max_steps=100, budget_hours=1, max_tokens=1000)) == share


def test_batch_grows_to_its_target():
    train = TrainArguments(max_steps=1, batch_size=100, micro_batch_size=10, batch_ramp=0.6)
    assert [micro_batches(share, train) for share in (0, 0.3, 0.6, 1)] == [1, 5, 10, 10]
    assert [micro_batches(share, train, processes=4) for share in (0, 0.6)] == [1, 3]  # 120 rows: rounded up
    assert micro_batches(0, TrainArguments(max_steps=1, batch_size=100, micro_batch_size=10, batch_ramp=0)) == 10


@given(st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted))
def test_batch_never_shrinks(shares):
    train = TrainArguments(max_steps=1, batch_size=1000, micro_batch_size=7, batch_ramp=0.6)
    assert 1 <= micro_batches(shares[0], train) <= micro_batches(shares[1], train) <= 143
