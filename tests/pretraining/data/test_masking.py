"""Masks: the same number in every sequence, never of special tokens, 80/10/10, and a function of seed and place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrafastbert.pretraining.data.masking import Masker, masks_per_sequence

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def make_masker(probability=0.25, seed=0, vocab_size=100):
    return Masker(probability, vocab_size, SPECIAL, seed)


def make_sequences(count=16, length=32, seed=0):
    sequences = torch.randint(5, 100, (count, length), generator=torch.Generator().manual_seed(seed))
    sequences[:, ::7] = SPECIAL["sep"]
    return sequences


@settings(deadline=None, max_examples=50)
@given(
    probability=st.floats(0.01, 0.5),
    length=st.integers(2, 64),
    seed=st.integers(0, 10**9),
    place=st.integers(0, 10**12),
)
def test_only_chosen_ordinary_tokens_change(probability, length, seed, place):
    sequences = make_sequences(4, length)
    batch = make_masker(probability, seed)(sequences, place)
    assert batch.masked_positions.shape == (4, masks_per_sequence(length, probability))
    chosen = torch.zeros_like(sequences, dtype=torch.bool).scatter(1, batch.masked_positions, True)
    assert chosen.sum() == batch.masked_positions.numel()  # no position twice
    assert torch.equal(batch.input_ids[~chosen], sequences[~chosen])
    assert torch.equal(batch.labels, sequences.masked_fill(sequences < 5, -100))
    changed = batch.input_ids[batch.input_ids != sequences]
    assert (changed >= SPECIAL["mask"]).all() and (changed < 100).all()


def test_special_tokens_are_not_chosen_before_all_others():
    sequences = make_sequences(64)
    batch = make_masker(0.5)(sequences, 0)
    assert (sequences.gather(1, batch.masked_positions) >= 5).all()


def test_special_tokens_that_are_chosen_have_no_label():
    sequences = torch.full((2, 16), SPECIAL["sep"])
    sequences[:, 3] = 50
    batch = make_masker(0.25)(sequences, 0)
    labels = batch.labels.gather(1, batch.masked_positions)
    assert (labels != -100).sum(1).tolist() == [1, 1]


def test_fractions_are_80_10_10():
    sequences = torch.randint(5, 1005, (400, 128), generator=torch.Generator().manual_seed(1))
    batch = make_masker(0.25, vocab_size=1005)(sequences, 0)
    before, after = sequences.gather(1, batch.masked_positions), batch.input_ids.gather(1, batch.masked_positions)
    assert (after == SPECIAL["mask"]).double().mean() == pytest.approx(0.8, abs=0.015)
    assert (after == before).double().mean() == pytest.approx(0.1, abs=0.015)
    random = after[(after != SPECIAL["mask"]) & (after != before)]
    assert random.double().mean() == pytest.approx(505, abs=20)  # uniform over the ordinary tokens


def test_every_position_is_chosen_equally_often():
    sequences = torch.full((4000, 16), 7)
    counts = make_masker(0.25)(sequences, 0).masked_positions.flatten().bincount(minlength=16)
    assert counts.min() > 850 and counts.max() < 1150


def test_masks_depend_only_on_seed_and_place():
    sequences = make_sequences()
    masker = make_masker()
    first = masker(sequences, 40)
    masker(sequences, 999)
    assert torch.equal(masker(sequences, 40).input_ids, first.input_ids)
    assert not torch.equal(masker(sequences, 41).masked_positions, first.masked_positions)
    assert not torch.equal(make_masker(seed=1)(sequences, 40).masked_positions, first.masked_positions)
