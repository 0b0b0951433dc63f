"""Masked batches of prepared data: the training data in the order of the seed, and the validation sequences."""

import functools

import torch

from ultrafastbert.pretraining.arguments import PretrainArguments
from ultrafastbert.pretraining.data.batches import SequenceOrder
from ultrafastbert.pretraining.data.masking import MaskedBatch, Masker
from ultrafastbert.pretraining.data.packed import PackedData
from ultrafastbert.pretraining.step import to_device


class MaskedBatches:
    """Training data as masked micro-batches, and the sequences for validation.

    Order and masks are functions of the seed and of the position in the data, so there is no state to save.

    Args:
        arguments: of the run.
        data: that is read.
        device: of the batches.

    Attributes:
        validation: int64 `(sequences, sequence_length)` in the host's memory, the same in every run on this data.
        validation_masker: masks them in the same way every time.
    """

    def __init__(self, arguments: PretrainArguments, data: PackedData, device: torch.device):
        train, seed = arguments.train, arguments.seed
        self.size, self.device = train.micro_batch_size, device
        # Sequences that were ordered on purpose are trained on in that order.
        shuffle = data.manifest["request"]["options"]["order"] == "source"
        self.order = SequenceOrder(data.train, seed, shuffle)
        masker = functools.partial(
            Masker,
            probability=train.mask_probability,
            vocab_size=data.vocab_size,
            special_token_ids=data.special_token_ids,
            device=device,
        )
        self.masker, self.validation_masker = masker(seed=seed), masker(seed=seed + 1)
        count = min(train.eval_sequences, len(data.validation))
        self.validation = SequenceOrder(data.validation, seed=0).read(0, count)

    def read(self, place: int) -> MaskedBatch:
        """The micro-batch that starts at sequence `place` of the training data's order."""
        return self.masker(to_device(self.order.read(place, self.size), self.device), place)
