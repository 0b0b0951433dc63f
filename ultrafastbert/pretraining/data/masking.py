"""Masks for masked-language-model training, drawn on the device that trains.

Every row has the same number of positions to predict, so shapes are static. What is drawn follows from a seed and
the batch's place in the data alone.
"""

from typing import NamedTuple

import torch


class MaskedBatch(NamedTuple):
    input_ids: torch.Tensor  # (rows, sequence_length) int64, with masks
    labels: torch.Tensor  # (rows, sequence_length) int64, the tokens as they were; special ones -100
    masked_positions: torch.Tensor  # (rows, k) int64, the columns to predict


def masks_per_row(sequence_length: int, probability: float) -> int:
    """How many tokens of a row are predicted: at least 1."""
    return max(1, round(probability * sequence_length))


class Masker:
    """Chooses tokens to predict, never special ones, and hides them: 80 % become `[MASK]`, 10 % a random token.

    Args:
        probability: share of each row to predict, at most 0.5.
        vocab_size: random tokens are drawn from all but the special ones.
        special_token_ids: ids by name (`"mask"` among them) that are neither predicted nor drawn.
        seed: of everything that is drawn.
        device: where batches are and draws are made.

    Source: Devlin et al., arXiv 1810.04805, section 3.1; the fixed number a row: arXiv 2212.14034.
    """

    def __init__(
        self,
        probability: float,
        vocab_size: int,
        special_token_ids: dict[str, int],
        seed: int,
        device: torch.device | str = "cpu",
    ):
        self.probability, self.seed = probability, seed
        self.mask_id = special_token_ids["mask"]
        ordinary = torch.ones(vocab_size, dtype=torch.bool, device=device)
        ordinary[list(special_token_ids.values())] = False
        self.is_ordinary = ordinary  # (vocab,)
        self.ordinary_ids = ordinary.nonzero().squeeze(1)
        self.generator = torch.Generator(device=device)

    def __call__(self, rows: torch.Tensor, place: int) -> MaskedBatch:
        """Masks int64 `(rows, sequence_length)`; `place`, the number of rows before these, seeds the draws."""
        generator = self.generator.manual_seed(_mix(self.seed, place))
        scores = torch.rand(rows.shape, device=rows.device, generator=generator)
        scores = scores.masked_fill(~self.is_ordinary[rows], -1)
        k = masks_per_row(rows.shape[1], self.probability)
        positions = scores.topk(k, dim=1).indices  # (rows, k)

        fate = torch.rand(positions.shape, device=rows.device, generator=generator)
        drawn = torch.randint(len(self.ordinary_ids), positions.shape, device=rows.device, generator=generator)
        original = rows.gather(1, positions)
        replacement = torch.where(fate < 0.9, self.ordinary_ids[drawn], original)
        replacement = torch.where(fate < 0.8, self.mask_id, replacement)
        # A row of mostly special tokens has fewer than k others; what is chosen beyond them is not to be learnt.
        labels = rows.masked_fill(~self.is_ordinary[rows], -100)
        return MaskedBatch(rows.scatter(1, positions, replacement), labels, positions)


def _mix(seed: int, place: int) -> int:
    """A 63-bit seed for each pair; an odd multiplier keeps neighbouring places apart (splitmix64's constant)."""
    return (seed * 0x9E3779B97F4A7C15 + place) % 2**63
