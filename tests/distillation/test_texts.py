"""Texts become sequences, and sequences batches."""

import numpy as np
import pytest

from tests.distillation.helpers import WORDS, make_tokenizer, write_texts
from ultrafastbert.distillation.arguments import TextArguments
from ultrafastbert.distillation.texts import Sequences, read_sequences
from ultrafastbert.utils.errors import UserError


def read(path, batch_size=8, seed=0, **options):
    return read_sequences(make_tokenizer(), TextArguments(source=str(path), **options), batch_size, seed)


def as_set(sequences):
    return {tuple(sequence.tolist()) for sequence in sequences.sequences}


def test_sequences_are_what_the_tokenizer_makes_of_texts(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join([" ".join(WORDS[:30]), "", "w1 w2", "w1 w2", "w3"] + WORDS))
    train, validation = read(tmp_path / "texts.txt", max_length=12, validation_sequences=2)
    long = [[2, *range(5 + start, 5 + min(start + 10, 30)), 3] for start in (0, 10, 20)]
    expected = {tuple(ids) for ids in long} | {(2, 6, 7, 3)} | {(2, 5 + word, 3) for word in range(40)}
    assert as_set(train) | as_set(validation) == expected
    assert len(validation) == 2 and not as_set(train) & as_set(validation)


def test_reading_stops_after_max_tokens(tmp_path):
    path = write_texts(tmp_path / "texts.txt", count=3000)
    train, validation = read(path, max_tokens=5000, validation_sequences=4)
    assert 5000 <= train.lengths.sum() + validation.lengths.sum() < 20_000  # texts are read a thousand at a time


def test_an_epoch_has_every_sequence_once_in_batches_of_similar_lengths(tmp_path):
    train, _ = read(write_texts(tmp_path / "texts.txt"), validation_sequences=4)
    for epoch in (0, 1):
        first = epoch * train.batches_per_epoch
        batches = [train.batch(first + number) for number in range(train.batches_per_epoch)]
        padded = [row for batch in batches for row in batch.input_ids.tolist()]
        rows = {tuple(token for token in row if token != 0) for row in padded}
        assert len(rows) == len(padded) == train.batches_per_epoch * 8
        padding = sum((1 - batch.attention_mask).sum().item() for batch in batches)
        assert padding < 0.1 * sum(batch.tokens for batch in batches)
    lengths = [int(batch.attention_mask.sum(1).max()) for batch in batches]
    assert lengths != sorted(lengths)


def test_batches_depend_on_seed_and_number_only(tmp_path):
    path = write_texts(tmp_path / "texts.txt")
    first, second = read(path, validation_sequences=4)[0], read(path, validation_sequences=4)[0]
    assert first.batch(3).input_ids.equal(second.batch(3).input_ids)
    later = first.batch(5 + first.batches_per_epoch)
    assert later.input_ids.equal(second.batch(5 + first.batches_per_epoch).input_ids)  # not having read the others
    assert first.batch(3).input_ids.equal(second.batch(3).input_ids)  # and back
    assert not read(path, seed=1, validation_sequences=4)[0].batch(3).input_ids.equal(first.batch(3).input_ids)


def test_padding():
    sequences = Sequences([np.array([7, 8, 9]), np.array([6])], pad_token_id=3, batch_size=2, seed=0)
    batch = sequences.pad(np.array([1, 0]))
    assert batch.input_ids.tolist() == [[6, 3, 3], [7, 8, 9]]
    assert batch.attention_mask.tolist() == [[1, 0, 0], [1, 1, 1]] and batch.tokens == 4


@pytest.mark.parametrize(
    "options, match",
    [
        ({"validation_sequences": 1000}, r"it should have at least 1,008: data.validation_sequences \(1000\) and a"),
        ({"max_length": 3}, None),
    ],
)
def test_too_little_is_refused(tmp_path, options, match):
    path = write_texts(tmp_path / "texts.txt")
    if match is None:
        assert read(path, validation_sequences=2, **options)[0].lengths.max() == 3
    else:
        with pytest.raises(UserError, match=match):
            read(path, **options)


def test_a_tokenizer_without_padding_is_refused(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(UserError, match="padding token"):
        read_sequences(tokenizer, TextArguments(source=write_texts(tmp_path / "texts.txt")), 8, 0)
