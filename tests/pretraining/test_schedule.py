"""What depends on the fraction of the budget that is spent."""

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultrafastbert.pretraining.arguments import TrainArguments
from ultrafastbert.pretraining.schedule import Progress, mask_probability, micro_batches, triangle


def test_triangle_rises_to_its_peak_and_falls_to_zero():
    assert [triangle(fraction, 0.5) for fraction in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.5, 1, 0.5, 0]
    assert triangle(0.25, 0.25) == 1 and triangle(1, 0.25) == 0
    assert triangle(0, 0) == 1 and triangle(1, 1) == 1


@given(fraction=st.floats(0, 1), peak=st.floats(0, 1))
def test_triangle_stays_within_zero_and_one(fraction, peak):
    assert 0 <= triangle(fraction, peak) <= 1


@pytest.mark.parametrize(
    "progress, fraction",
    [
        (Progress(step=25), 0.25),
        (Progress(step=25, seconds=1800), 0.5),
        (Progress(step=25, tokens=900), 0.9),
        (Progress(step=300), 1.0),
    ],
)
def test_the_budget_closest_to_its_end_counts(progress, fraction):
    assert progress.fraction_of_budget(TrainArguments(max_steps=100, budget_hours=1, max_tokens=1000)) == fraction


def test_batch_grows_to_its_target():
    train = TrainArguments(max_steps=1, batch_size=100, micro_batch_size=10, batch_ramp=0.6)
    assert [micro_batches(fraction, train) for fraction in (0, 0.3, 0.6, 1)] == [1, 5, 10, 10]
    assert [micro_batches(fraction, train, processes=4) for fraction in (0, 0.6)] == [
        1,
        3,
    ]  # 120 sequences: rounded up
    assert micro_batches(0, TrainArguments(max_steps=1, batch_size=100, micro_batch_size=10, batch_ramp=0)) == 10


def test_the_mask_probability_changes_in_steps():
    train = TrainArguments(max_steps=1, mask_probability=0.3, final_mask_probability=0.15)
    fractions = [index / 100 for index in range(101)]
    values = [mask_probability(fraction, train) for fraction in fractions]
    assert values[0] == 0.3 and values[-1] == 0.15 and values == sorted(values, reverse=True)
    assert len(set(values)) == 7
    for fraction, value in zip(fractions, values, strict=True):
        assert value == pytest.approx(0.3 - 0.15 * fraction, abs=0.0126)
    train = TrainArguments(max_steps=1, mask_probability=0.26)
    assert {mask_probability(fraction, train) for fraction in fractions} == {0.26}


@given(st.floats(0, 1), st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_the_mask_probability_stays_between_first_and_last(fraction, first, last):
    train = TrainArguments(max_steps=1, mask_probability=first, final_mask_probability=last)
    assert min(first, last) <= mask_probability(fraction, train) <= max(first, last)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted))
def test_batch_never_shrinks(fractions):
    train = TrainArguments(max_steps=1, batch_size=1000, micro_batch_size=7, batch_ramp=0.6)
    assert 1 <= micro_batches(fractions[0], train) <= micro_batches(fractions[1], train) <= 143


def test_progress_of_version_0_1_is_read():
    values = {"step": 4, "rows": 16, "tokens": 256, "seconds": 2.5, "skipped": 1, "skipped_in_a_row": 0}
    progress = Progress.from_dict(values)
    assert progress == Progress(step=4, sequences=16, tokens=256, seconds=2.5, skipped=1)
    assert Progress.from_dict(asdict(progress)) == progress
