"""The order in which training reads sequences: a function of the seed and the number of sequences read before.

A stopped run therefore resumes without any state saved here, and several processes read the same sequences in the same
order as one process.
"""

import numpy as np
import torch

from ultrafastbert.pretraining.arguments import PretrainArguments
from ultrafastbert.pretraining.data.masking import MaskedBatch, Masker
from ultrafastbert.pretraining.data.packed import PackedData, check_ids
from ultrafastbert.pretraining.step import to_device


class SequenceOrder:
    """The sequences of a token file, epoch after epoch, each epoch in a different random order.

    Args:
        sequences: `(sequences, sequence_length)` of an unsigned integer type; may be memory-mapped.
        seed: of the shuffling.
        shuffle: False keeps the order of the file, for files that are ordered on purpose.
        vocab_size: token ids are below it; None: they are not checked.
    """

    def __init__(self, sequences: np.ndarray, seed: int, shuffle: bool = True, vocab_size: int | None = None):
        self.sequences, self.seed, self.shuffle, self.vocab_size = sequences, seed, shuffle, vocab_size
        self._epoch, self._permutation = -1, np.empty(0, np.uint32)

    def read(self, start: int, count: int) -> torch.Tensor:
        """Returns the sequences at positions `start` to `start + count`: int64 `(count, sequence_length)`.

        Positions continue through all epochs: in epoch e they start at e times the number of sequences. Raises a
        DataError for a token id that is not in the vocabulary.
        """
        ids = self.sequences[[self._index(position) for position in range(start, start + count)]]
        if self.vocab_size is not None:
            check_ids(ids, self.vocab_size, getattr(self.sequences, "filename", None) or "the data")
        return torch.from_numpy(ids.astype(np.int64))

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, len(self.sequences))
        if not self.shuffle:
            return place
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._permutation = generator.permutation(len(self.sequences)).astype(np.uint32)
            self._epoch = epoch
        return int(self._permutation[place])


class MaskedBatches:
    """Training data as masked micro-batches, and the sequences for validation.

    Order, masks and which sequences repeat their beginning are functions of the seed, of the position in the data and
    of the fraction that is masked, so there is no state to save.

    Attributes:
        validation: int64 `(sequences, sequence_length)` in the host's memory, the same in every run on this data.
        validation_masker: masks them in the same way every time.
    """

    def __init__(self, arguments: PretrainArguments, data: PackedData, device: torch.device):
        train, seed = arguments.train, arguments.seed
        self.size, self.device, self.seed = train.micro_batch_size, device, seed
        self.repeat_probability, self.separator = train.repeat_probability, data.special_token_ids["sep"]
        # Sequences that were ordered on purpose are trained on in that order.
        shuffle = data.manifest["request"]["options"]["order"] == "source"
        self.order = SequenceOrder(data.train, seed, shuffle, data.vocab_size)
        of_data = (data.vocab_size, data.special_token_ids)
        in_validation = train.eval_mask_probability or train.mask_probability
        self.masker = Masker(train.mask_probability, *of_data, seed, device)
        self.validation_masker = Masker(in_validation, *of_data, seed + 1, device)
        count = min(train.eval_sequences, len(data.validation))
        self.validation = SequenceOrder(data.validation, seed=0, vocab_size=data.vocab_size).read(0, count)

    def read(self, place: int, mask_probability: float, process: int = 0, processes: int = 1) -> MaskedBatch:
        """A micro-batch with this fraction masked: that of one of the processes that read at `place` of the order.

        The micro-batches of all processes are read and masked together, so that sequences and masks are those of one
        process with larger micro-batches.

        Args:
            place: of the first process's micro-batch; those of the others follow.
            mask_probability: fraction of each sequence.
            process: whose micro-batch it is.
            processes: that train together.
        """
        self.masker.fraction = mask_probability
        sequences = self.order.read(place, processes * self.size)
        if self.repeat_probability:
            self._repeat(sequences, np.random.default_rng([self.seed, place]))
        batch = self.masker(to_device(sequences, self.device), place)
        return batch.part(process * self.size, self.size)

    def _repeat(self, sequences: torch.Tensor, generator: np.random.Generator) -> None:
        """Replaces some of the sequences by repetitions of their beginning, in place."""
        length = sequences.shape[1]
        chosen = np.flatnonzero(generator.random(len(sequences)) < self.repeat_probability)
        # of different lengths: at a constant distance, copying would need no comparison
        tokens = generator.integers(max(1, length // 12), max(2, length // 2), len(chosen))
        for index, count in zip(chosen.tolist(), tokens.tolist(), strict=True):
            sequences[index] = repeat_beginning(sequences[index], count, self.separator)


def repeat_beginning(sequence: torch.Tensor, tokens: int, separator: int) -> torch.Tensor:
    """The first tokens of a sequence and a separator, again and again.

    `(sequence_length,)` int64 -> the same.
    """
    unit = torch.cat((sequence[:tokens], sequence.new_tensor([separator])))
    return unit.repeat(-(-len(sequence) // len(unit)))[: len(sequence)]
