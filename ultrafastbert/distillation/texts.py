"""Texts as sequences of tokens, each with the special tokens that the encoder has in use."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ultrafastbert.distillation.arguments import TextArguments
from ultrafastbert.pretraining.data.arguments import DataArguments
from ultrafastbert.pretraining.data.sources import find_sources
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.progress import progress_bar

TEXTS_AT_ONCE = 1024
WINDOW = 32
"""Batches that are sorted by length together."""


@dataclass
class TextBatch:
    """Sequences that are padded on the right: `input_ids` and `attention_mask`, both int64 `(batch, seq)`."""

    input_ids: Tensor
    attention_mask: Tensor

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.attention_mask.sum())


class Sequences:
    """Sequences of tokens in memory, and batches of them as a function of the seed.

    Args:
        sequences: int32 arrays of token ids.
        pad_token_id: for padding.
        batch_size: of batches. [sequences]
        seed: of their order.
    """

    def __init__(self, sequences: list[np.ndarray], pad_token_id: int, batch_size: int, seed: int):
        self.sequences, self.pad_token_id, self.batch_size, self.seed = sequences, pad_token_id, batch_size, seed
        self.lengths = np.array([len(sequence) for sequence in sequences])
        self._epoch, self._order = -1, np.empty(0, dtype=int)

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches; there are at least as many sequences as one has."""
        return len(self.sequences) // self.batch_size

    def batch(self, number: int) -> TextBatch:
        """Batch `number` of all epochs: sequences in random order, those of a batch of similar lengths."""
        epoch, index = divmod(number, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return self.pad(self._order[index * self.batch_size : (index + 1) * self.batch_size])

    def _shuffled(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng((self.seed, epoch))
        order = generator.permutation(len(self.sequences))[: self.batches_per_epoch * self.batch_size]
        windows = np.array_split(order.reshape(-1, self.batch_size), range(WINDOW, self.batches_per_epoch, WINDOW))
        batches = [
            window.flatten()[np.argsort(self.lengths[window.flatten()], kind="stable")].reshape(window.shape)
            for window in windows
        ]
        return generator.permutation(np.concatenate(batches)).flatten()

    def pad(self, indices: np.ndarray) -> TextBatch:
        """A batch of these sequences."""
        longest = int(self.lengths[indices].max())
        input_ids = np.full((len(indices), longest), self.pad_token_id)
        for row, index in enumerate(indices):
            input_ids[row, : self.lengths[index]] = self.sequences[index]
        mask = np.arange(longest) < self.lengths[indices][:, None]
        return TextBatch(torch.from_numpy(input_ids), torch.from_numpy(mask.astype(np.int64)))


def read_sequences(
    tokenizer: PreTrainedTokenizerBase, arguments: TextArguments, batch_size: int, seed: int
) -> tuple[Sequences, Sequences]:
    """The sequences to train on, and those to validate on, which are a random sample of all.

    A text that is longer than `max_length` becomes several sequences. Identical sequences are kept once.

    Raises:
        UserError: a source cannot be read, or has too few texts.
    """
    pad: Any = tokenizer.pad_token_id
    special = tokenizer.num_special_tokens_to_add()
    if pad is None or not tokenizer.is_fast:
        raise UserError("the model's tokenizer should be a fast one with a padding token")
    if arguments.max_length <= special:
        raise UserError(f"data.max_length is {arguments.max_length}; it should be at least {special + 1}")
    cut = {"truncation": True, "max_length": arguments.max_length, "return_overflowing_tokens": True}
    found: dict[bytes, np.ndarray] = {}
    read = 0
    with tempfile.TemporaryDirectory() as scratch, progress_bar(arguments.max_tokens, "reading texts") as bar:
        for texts in _batches_of_texts(arguments, Path(scratch)):
            for ids in tokenizer(texts, **cut)["input_ids"]:
                sequence = np.array(ids, dtype=np.int32)
                if found.setdefault(sequence.tobytes(), sequence) is sequence:
                    read += len(sequence)
                    bar.update(len(sequence))
            if read >= arguments.max_tokens:
                break
    sequences, held_out = list(found.values()), arguments.validation_sequences
    if len(sequences) < held_out + batch_size:
        raise UserError(
            f"data.source has {len(sequences):,} sequences; it should have at least {held_out + batch_size:,}: "
            f"data.validation_sequences ({held_out}) and a batch (train.batch_size, {batch_size})"
        )
    order = np.random.default_rng(seed).permutation(len(sequences))
    train, validation = ([sequences[index] for index in part] for part in (order[held_out:], order[:held_out]))
    return Sequences(train, pad, batch_size, seed), Sequences(validation, pad, min(batch_size, held_out), seed)


def _batches_of_texts(arguments: TextArguments, scratch: Path):  # noqa: ANN202 - an iterator of lists of texts
    texts: list[str] = []
    for source in find_sources(arguments.source, DataArguments(text_column=arguments.text_column)):
        for text, _ in source.texts(scratch):
            if text.strip():
                texts.append(text)
            if len(texts) == TEXTS_AT_ONCE:
                yield texts
                texts = []
    if texts:
        yield texts
