"""Rows of a task as token ids, in batches of rows of similar length so that little is spent on padding."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ultrafastbert.finetuning.data.tasks import Split

ROWS_AT_ONCE = 10_000
"""How many rows the tokenizer gets at a time: its lists of Python numbers are much larger than what is kept."""
BATCHES_AT_ONCE = 50
"""How many batches are drawn before they are sorted: with more, rows meet the same company in every epoch."""


class EncodedSplit:
    """The rows of a split as token ids.

    Attributes:
        columns: by name (`input_ids`, for some models `token_type_ids`), an array of ids a row.
        lengths: of the rows, int64 (rows,). [tokens]
        labels: int64 or float32 (rows,), or None.
        truncated: how many rows were longer than `max_length` and were cut.

    Args:
        split: the rows.
        tokenizer: of the model.
        max_length: rows are cut at so many tokens, special ones included; of a pair, the longer text is cut.
    """

    def __init__(self, split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int):
        self.tokenizer, self.columns, self.truncated = tokenizer, {}, 0
        for start in range(0, len(split), ROWS_AT_ONCE):
            texts = split.texts[start : start + ROWS_AT_ONCE]
            # The whole of it first: what is cut must be counted.
            whole = tokenizer(*map(list, zip(*texts, strict=True)), return_attention_mask=False, verbose=False)
            long = [row for row, ids in enumerate(whole["input_ids"]) if len(ids) > max_length]
            self.truncated += len(long)
            columns = {name: [np.array(ids, dtype=np.int32) for ids in whole[name]] for name in whole}
            for row in long:
                cut = tokenizer(
                    *texts[row], truncation="longest_first", max_length=max_length, return_attention_mask=False
                )
                for name in cut:
                    columns[name][row] = np.array(cut[name], dtype=np.int32)
            for name, rows in columns.items():
                self.columns.setdefault(name, []).extend(rows)
        self.lengths = np.array([len(ids) for ids in self.columns["input_ids"]])
        self.labels = None
        if split.labels is not None:
            is_class = isinstance(split.labels[0], int)
            self.labels = torch.tensor(split.labels, dtype=torch.int64 if is_class else torch.float32)

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """The inputs of a model for these rows, padded to the longest, (rows, tokens) each; and `labels`, (rows,),
        where there are labels."""
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        batch = dict(self.tokenizer.pad(columns, return_tensors="pt"))
        if self.labels is not None:
            batch["labels"] = self.labels[list(rows)]
        return batch


def training_batches(lengths: np.ndarray, batch_size: int, generator: np.random.Generator) -> list[list[int]]:
    """Batches of an epoch: every row once, in random order, but with rows of similar length together.

    The rows are shuffled, cut into pieces of fifty batches, and each piece is sorted by length before it is cut into
    batches; then the batches are shuffled. The last batch of a piece may be smaller than `batch_size`.
    """
    order, piece = generator.permutation(len(lengths)), batch_size * BATCHES_AT_ONCE
    batches = []
    for start in range(0, len(order), piece):
        rows = order[start : start + piece]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[first : first + batch_size].tolist() for first in range(0, len(rows), batch_size)]
    return [batches[index] for index in generator.permutation(len(batches))]


def evaluation_batches(lengths: np.ndarray, batch_size: int) -> list[list[int]]:
    """All rows, sorted by length."""
    rows = np.argsort(lengths, kind="stable")
    return [rows[first : first + batch_size].tolist() for first in range(0, len(rows), batch_size)]
