"""Examples are encoded as the tokenizer does it; batches have every example once and little padding."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ultrafastbert.finetuning.data import encoding
from ultrafastbert.finetuning.data.encoding import EncodedSplit, evaluation_batches, training_batches
from ultrafastbert.finetuning.data.tasks import Split

SINGLE = [("a b c",), ("d",), ("e f g h i j",), ("a",)]
PAIRS = [("a b c d e", "f"), ("g", "h i"), ("a b", "c d e f g h i j")]


@pytest.fixture(scope="module")
def tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.mark.parametrize("texts", [SINGLE, PAIRS])
@pytest.mark.parametrize("max_length", [5, 7, 64])
@pytest.mark.parametrize("at_once", [2, 100])
def test_a_batch_agrees_with_the_tokenizer(tokenizer, monkeypatch, texts, max_length, at_once):
    monkeypatch.setattr(encoding, "EXAMPLES_AT_ONCE", at_once)
    split = EncodedSplit(Split("x", texts, None, []), tokenizer, max_length)
    indices = [2, 0]
    expected = tokenizer(
        *([texts[index][column] for index in indices] for column in range(len(texts[0]))),
        truncation="longest_first",
        max_length=max_length,
        padding=True,
        return_tensors="pt",
    )
    batch = split.batch(indices)
    assert batch.keys() == expected.keys()
    for name in batch:
        assert torch.equal(batch[name], expected[name])
    whole = [len(tokenizer(*text)["input_ids"]) for text in texts]
    assert split.truncated == sum(length > max_length for length in whole)
    assert split.lengths.tolist() == [min(length, max_length) for length in whole]


def test_labels_are_classes_or_numbers(tokenizer):
    classes = EncodedSplit(Split("x", SINGLE, [0, 2, 1, 0], []), tokenizer, 8)
    assert classes.batch([1, 2])["labels"].tolist() == [2, 1] and classes.labels.dtype == torch.int64
    numbers = EncodedSplit(Split("x", SINGLE, [0.5, 2.0, 1.0, 0.0], []), tokenizer, 8)
    assert numbers.batch([0, 1])["labels"].tolist() == [0.5, 2.0] and numbers.labels.dtype == torch.float32


lengths = st.lists(st.integers(1, 128), min_size=1, max_size=500).map(np.array)


@given(lengths, st.integers(1, 9), st.integers(0, 5))
def test_an_epoch_has_every_example_once(lengths, batch_size, seed):
    batches = training_batches(lengths, batch_size, np.random.default_rng(seed))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(0 < len(batch) <= batch_size for batch in batches)
    assert batches == training_batches(lengths, batch_size, np.random.default_rng(seed))


@given(lengths, st.integers(1, 9))
def test_evaluation_has_every_example_once(lengths, batch_size):
    batches = evaluation_batches(lengths, batch_size)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))


def test_grouping_by_length_leaves_little_padding_and_a_random_order():
    generator = np.random.default_rng(0)
    lengths = generator.integers(4, 129, 5000)
    batches = training_batches(lengths, 16, generator)
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert lengths.sum() / padded > 0.95  # 0.55 without grouping
    longest = [lengths[batch].max() for batch in batches]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.2
    assert batches != training_batches(lengths, 16, generator)  # another epoch, another order
