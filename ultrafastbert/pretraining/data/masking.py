"""Masks for masked-language modeling, drawn on the device that trains.

Every sequence has the same number of masked positions, so that shapes are static. The masks depend only on a seed and
on the place of the batch in the training data, so that a resumed run draws the same ones.
"""

from typing import NamedTuple

import torch


class MaskedBatch(NamedTuple):
    """A batch with tokens to predict.

    Attributes:
        input_ids: int64 `(sequences, sequence_length)`, with masks.
        labels: int64 `(sequences, sequence_length)`, the original tokens; -100 in place of special ones.
        masked_positions: int64 `(sequences, masks)`, the columns to predict.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    masked_positions: torch.Tensor

    def part(self, first: int, count: int) -> "MaskedBatch":
        """The `count` sequences from `first` on."""
        return MaskedBatch(*(tensor[first : first + count] for tensor in self))


def masks_per_sequence(sequence_length: int, probability: float) -> int:
    """Number of tokens of a sequence to predict, at least 1."""
    return max(1, round(probability * sequence_length))


class Masker:
    """Chooses tokens to predict, never special ones: 80 % become `[MASK]`, 10 % a random token, 10 % stay.

    Args:
        fraction: of each sequence to predict, at most 0.5.
        vocab_size: random tokens are drawn from the vocabulary without the special ones.
        special: token ids by name (`"mask"` among them) that are neither predicted nor drawn.
        seed: of everything that is drawn.
        device: of the batches; masks are drawn there.

    Source: Devlin et al., arXiv 1810.04805, section 3.1; the same number for every sequence: arXiv 2212.14034.
    """

    def __init__(
        self, fraction: float, vocab_size: int, special: dict[str, int], seed: int, device: torch.device | str = "cpu"
    ):
        self.fraction, self.seed = fraction, seed
        self.mask_id = special["mask"]
        ordinary = torch.ones(vocab_size, dtype=torch.bool, device=device)
        ordinary[list(special.values())] = False
        self.is_ordinary = ordinary  # (vocab,)
        self.ordinary_ids = ordinary.nonzero().squeeze(1)
        self.generator = torch.Generator(device=device)

    def __call__(self, sequences: torch.Tensor, place: int) -> MaskedBatch:
        """Masks int64 `(sequences, sequence_length)`; `place`, the number of sequences before, seeds the draws."""
        # a 63-bit seed for each pair; an odd multiplier keeps neighboring places apart (splitmix64's constant)
        generator = self.generator.manual_seed((self.seed * 0x9E3779B97F4A7C15 + place) % 2**63)
        device = sequences.device
        is_ordinary = self.is_ordinary[sequences]
        scores = torch.rand(sequences.shape, device=device, generator=generator).masked_fill(~is_ordinary, -1)
        positions = scores.topk(masks_per_sequence(sequences.shape[1], self.fraction), dim=1).indices

        draw = torch.rand(positions.shape, device=device, generator=generator)  # (sequences, masks)
        random = torch.randint(len(self.ordinary_ids), positions.shape, device=device, generator=generator)
        original = sequences.gather(1, positions)
        replacement = torch.where(draw < 0.9, self.ordinary_ids[random], original)
        replacement = torch.where(draw < 0.8, self.mask_id, replacement)
        # A sequence of mostly special tokens has too few others; the special ones chosen in addition have no label.
        labels = sequences.masked_fill(~is_ordinary, -100)
        return MaskedBatch(sequences.scatter(1, positions, replacement), labels, positions)
