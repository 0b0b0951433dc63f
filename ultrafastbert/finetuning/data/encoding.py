"""Examples as token ids, in batches of similar lengths so that little time is spent on padding."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ultrafastbert.finetuning.data.tasks import Split

EXAMPLES_AT_ONCE = 10_000
"""Examples that the tokenizer gets at a time: its lists of Python numbers are much larger than the arrays kept."""
BATCHES_AT_ONCE = 50
"""Batches that are sorted by length together: with more, the same examples would share a batch in every epoch."""


class EncodedSplit:
    """The examples of a split as token ids.

    Attributes:
        columns: by name (`input_ids`, for some models `token_type_ids`), an int32 array `(tokens,)` for each example.
        lengths: of the examples, int64 `(examples,)`. [tokens]
        labels: int64 or float32 `(examples,)`, or None.
        truncated: number of examples that were longer than `max_length`.

    Args:
        split: the examples.
        tokenizer: of the model.
        max_length: examples are truncated to this many tokens, special ones included; of a pair, the longer text is.
    """

    def __init__(self, split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int):
        self.tokenizer, self.truncated = tokenizer, 0
        self.columns: dict[str, list[np.ndarray]] = {}
        for start in range(0, len(split), EXAMPLES_AT_ONCE):
            texts = split.texts[start : start + EXAMPLES_AT_ONCE]
            columns = self._encode(texts)  # without truncation, to count the examples that are too long
            for index, ids in enumerate(columns["input_ids"]):
                if len(ids) > max_length:
                    self.truncated += 1
                    cut = self._encode([texts[index]], truncation="longest_first", max_length=max_length)
                    for name, (array,) in cut.items():
                        columns[name][index] = array
            for name, arrays in columns.items():
                self.columns.setdefault(name, []).extend(arrays)
        self.lengths = np.array([len(ids) for ids in self.columns["input_ids"]])
        self.labels = None
        if split.labels is not None:
            is_class = isinstance(split.labels[0], int)
            self.labels = torch.tensor(split.labels, dtype=torch.int64 if is_class else torch.float32)

    def _encode(self, texts: list[tuple[str, ...]], **options: Any) -> dict[str, list[np.ndarray]]:
        first, second = [text[0] for text in texts], [text[1] for text in texts if len(text) == 2]
        columns = self.tokenizer(first, second or None, return_attention_mask=False, verbose=False, **options)
        return {name: [np.array(ids, dtype=np.int32) for ids in columns[name]] for name in columns}

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, torch.Tensor]:
        """The inputs of a model for these examples.

        Returns:
            `input_ids` and further inputs, padded to the longest example, `(examples, tokens)` each; and `labels`,
            `(examples,)`, if the split has labels.
        """
        columns = {name: [arrays[index] for index in indices] for name, arrays in self.columns.items()}
        batch = dict(self.tokenizer.pad(columns, return_tensors="pt"))  # pyright: ignore[reportArgumentType]
        if self.labels is not None:
            batch["labels"] = self.labels[list(indices)]
        return batch


def training_batches(lengths: np.ndarray, batch_size: int, generator: np.random.Generator) -> list[list[int]]:
    """The batches of an epoch: every example once, in random order, but with examples of similar lengths together.

    The examples are shuffled and divided into pieces of 50 batches. Each piece is sorted by length and divided into
    batches, of which the last may be smaller than `batch_size`. Then all batches are shuffled.
    """
    order, piece = generator.permutation(len(lengths)), batch_size * BATCHES_AT_ONCE
    batches = []
    for start in range(0, len(order), piece):
        indices = order[start : start + piece]
        batches += _divide(indices[np.argsort(lengths[indices], kind="stable")], batch_size)
    return [batches[index] for index in generator.permutation(len(batches))]


def evaluation_batches(lengths: np.ndarray, batch_size: int) -> list[list[int]]:
    """Batches of all examples, sorted by length."""
    return _divide(np.argsort(lengths, kind="stable"), batch_size)


def _divide(indices: np.ndarray, batch_size: int) -> list[list[int]]:
    return [indices[start : start + batch_size].tolist() for start in range(0, len(indices), batch_size)]
