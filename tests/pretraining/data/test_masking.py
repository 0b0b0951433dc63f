"""Masks: the same number in every row, never special tokens, 80/10/10, and a function of seed and place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrafastbert.pretraining.data.masking import Masker, masks_per_row

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def make_masker(probability=0.25, seed=0, vocab_size=100):
    return Masker(probability, vocab_size, SPECIAL, seed)


def make_rows(count=16, length=32, seed=0):
    rows = torch.randint(5, 100, (count, length), generator=torch.Generator().manual_seed(seed))
    rows[:, ::7] = SPECIAL["sep"]
    return rows


@settings(deadline=None, max_examples=50)
@given(
    probability=st.floats(0.01, 0.5),
    length=st.integers(2, 64),
    seed=st.integers(0, 10**9),
    place=st.integers(0, 10**12),
)
def test_only_chosen_ordinary_tokens_change(probability, length, seed, place):
    rows = make_rows(4, length)
    batch = make_masker(probability, seed)(rows, place)
    assert batch.masked_positions.shape == (4, masks_per_row(length, probability))
    chosen = torch.zeros_like(rows, dtype=torch.bool).scatter(1, batch.masked_positions, True)
    assert chosen.sum() == batch.masked_positions.numel()  # no position twice
    assert torch.equal(batch.input_ids[~chosen], rows[~chosen])
    assert torch.equal(batch.labels, rows.masked_fill(rows < 5, -100))
    changed = batch.input_ids[batch.input_ids != rows]
    assert (changed >= SPECIAL["mask"]).all() and (changed < 100).all()


def test_special_tokens_are_not_chosen_while_there_are_others():
    rows = make_rows(64)
    batch = make_masker(0.5)(rows, 0)
    assert (rows.gather(1, batch.masked_positions) >= 5).all()


def test_a_row_of_special_tokens_has_nothing_to_learn():
    rows = torch.full((2, 16), SPECIAL["sep"])
    rows[:, 3] = 50
    batch = make_masker(0.25)(rows, 0)
    labels = batch.labels.gather(1, batch.masked_positions)
    assert (labels != -100).sum(1).tolist() == [1, 1]


def test_shares_are_80_10_10():
    rows = torch.randint(5, 1005, (400, 128), generator=torch.Generator().manual_seed(1))
    batch = make_masker(0.25, vocab_size=1005)(rows, 0)
    before, after = rows.gather(1, batch.masked_positions), batch.input_ids.gather(1, batch.masked_positions)
    assert (after == SPECIAL["mask"]).double().mean() == pytest.approx(0.8, abs=0.015)
    assert (after == before).double().mean() == pytest.approx(0.1, abs=0.015)
    random = after[(after != SPECIAL["mask"]) & (after != before)]
    assert random.double().mean() == pytest.approx(505, abs=20)  # uniform over the ordinary tokens


def test_every_position_is_chosen_equally_often():
    rows = torch.full((4000, 16), 7)
    counts = make_masker(0.25)(rows, 0).masked_positions.flatten().bincount(minlength=16)
    assert counts.min() > 850 and counts.max() < 1150


def test_draws_follow_from_seed_and_place_alone():
    rows = make_rows()
    masker = make_masker()
    first = masker(rows, 40)
    masker(rows, 999)
    assert torch.equal(masker(rows, 40).input_ids, first.input_ids)
    assert not torch.equal(masker(rows, 41).masked_positions, first.masked_positions)
    assert not torch.equal(make_masker(seed=1)(rows, 40).masked_positions, first.masked_positions)
