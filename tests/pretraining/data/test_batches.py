"""The order of sequences: every sequence once an epoch, however many are read at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrafastbert.pretraining.data.batches import MaskedBatches, SequenceOrder, repeat_beginning
from ultrafastbert.pretraining.data.prepare import prepare

SEQUENCES = np.arange(13, dtype=np.uint16)[:, None].repeat(3, axis=1)  # sequence i is i, i, i


@settings(deadline=None)
@given(seed=st.integers(0, 1000), shuffle=st.booleans())
def test_each_epoch_has_each_sequence_once(seed, shuffle):
    order = SequenceOrder(SEQUENCES, seed, shuffle)
    for epoch in range(3):
        assert sorted(order.read(13 * epoch, 13)[:, 0].tolist()) == list(range(13))


def test_epochs_and_seeds_differ():
    first = SequenceOrder(SEQUENCES, seed=0).read(0, 26)[:, 0].tolist()
    assert first[:13] != first[13:]
    assert first != SequenceOrder(SEQUENCES, seed=1).read(0, 26)[:, 0].tolist()


@settings(deadline=None)
@given(start=st.integers(0, 60), counts=st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_reading_in_pieces_gives_the_same_sequences(start, counts):
    whole = SequenceOrder(SEQUENCES, seed=5).read(start, sum(counts))
    assert whole.dtype == torch.int64 and whole.shape == (sum(counts), 3)
    order, place, pieces = SequenceOrder(SEQUENCES, seed=5), start, []
    for count in counts:
        pieces.append(order.read(place, count))
        place += count
    assert torch.equal(torch.cat(pieces), whole)


def test_without_shuffling_the_order_is_that_of_the_file():
    assert SequenceOrder(SEQUENCES, seed=3, shuffle=False).read(11, 4)[:, 0].tolist() == [11, 12, 0, 1]


@pytest.mark.parametrize("fraction, masks", [(None, 8), (0.125, 4)])
def test_validation_may_mask_another_fraction(make_arguments, fraction, masks):
    arguments = make_arguments(mask_probability=0.25, eval_mask_probability=fraction)
    batches = MaskedBatches(arguments, prepare(arguments.data), torch.device("cpu"))
    assert batches.read(0, 0.25).masked_positions.shape == (4, 8)  # of the 32 tokens of a sequence
    assert batches.validation_masker(batches.validation, 0).masked_positions.shape == (16, masks)


@pytest.mark.parametrize("length, tokens", [(8, 3), (9, 4), (5, 2), (2, 1), (128, 10)])
def test_a_beginning_is_repeated(length, tokens):
    sequence = torch.arange(10, 10 + length)
    repeated = repeat_beginning(sequence, tokens, separator=3)
    assert repeated.shape == sequence.shape
    for place in range(length):
        expected = 3 if place % (tokens + 1) == tokens else sequence[place % (tokens + 1)]
        assert repeated[place] == expected


def test_some_sequences_repeat_their_beginning(make_arguments):
    """The chosen fraction, the same in every reading; the others are as without the option."""
    data = prepare(make_arguments().data)

    def read(probability, place):
        arguments = make_arguments(repeat_probability=probability, micro_batch_size=200)
        return MaskedBatches(arguments, data, torch.device("cpu")).read(place, 0.25).labels

    plain, some = read(0.0, 400), read(0.4, 400)
    changed = (plain != some).any(dim=1)
    assert 50 < changed.sum() < 110 and torch.equal(plain[~changed], some[~changed])
    tokens = set()
    for before, after in zip(plain[changed], some[changed], strict=True):
        fits = [count for count in range(1, 16) if torch.equal(repeat_beginning(before, count, -100), after)]
        assert fits  # the labels of separators are -100, those of the text included
        tokens.add(fits[-1])
    assert len(tokens) > 5
    assert torch.equal(read(0.4, 400), some) and not torch.equal(read(0.4, 600), some)


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_processes_read_what_one_would_read(make_arguments, processes):
    """Sequences, masks and repetitions of one process with larger micro-batches."""
    data = prepare(make_arguments().data)

    def read(size, process=0, processes=1):
        arguments = make_arguments(repeat_probability=0.4, micro_batch_size=size)
        return MaskedBatches(arguments, data, torch.device("cpu")).read(36, 0.25, process, processes)

    whole = read(12)
    parts = [read(12 // processes, process, processes) for process in range(processes)]
    assert all(len(part.labels) == 12 // processes for part in parts)
    for expected, tensors in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(tensors), expected)
