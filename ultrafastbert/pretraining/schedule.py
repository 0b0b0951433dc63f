"""The budget of a run, and what depends on the fraction of it that is spent: learning rate and batch size."""

import math
from dataclasses import dataclass
from typing import Any, Self

from ultrafastbert.pretraining.arguments import TrainArguments


@dataclass
class Progress:
    """What a run has spent so far: its whole state besides model, optimiser and random generators.

    Attributes:
        step: optimiser steps, those that were skipped included.
        sequences: sequences of training data, over all devices.
        tokens: tokens of training data, over all devices.
        seconds: wall-clock time in the training loop, over all resumed runs.
        skipped: steps skipped because loss or gradient were not finite.
        skipped_in_a_row: the last of them, up to the current step.
        has_grown: whether trees with leaves have got their decisions (`train.grow_at`).
        in_bf16: whether passes run in bfloat16, so that a resumed run does not choose anew; None: it was not recorded.
        backends: of the trees on a GPU, by their size, such as 1x11, for the same reason; None: none was chosen.
    """

    step: int = 0
    sequences: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    has_grown: bool = False
    in_bf16: bool | None = None
    backends: dict[str, str] | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Reads `dataclasses.asdict` of a progress, also as version 0.1 wrote it, with `rows` for `sequences`."""
        return cls(**{"sequences" if name == "rows" else name: value for name, value in values.items()})

    def fraction_of_budget(self, train: TrainArguments) -> float:
        """The fraction of the budget that is spent, 0 to 1; of several budgets, the one closest to its end counts."""
        spent = {"budget_hours": self.seconds / 3600, "max_steps": self.step, "max_tokens": self.tokens}
        return min(1.0, max(spent[name] / budget for name, budget in train.budgets.items()))

    def position(self, train: TrainArguments) -> dict[str, float]:
        """Step, fraction of the budget, tokens and seconds, for a line of `metrics.jsonl`."""
        return {
            "step": self.step,
            "budget_fraction": round(self.fraction_of_budget(train), 6),
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
        }


def triangle(fraction: float, peak: float) -> float:
    """The learning rate relative to its peak: linear from 0 at fraction 0 to 1 at `peak`, and to 0 at fraction 1.

    Source: arXiv 2212.14034, section 4.3, "one-cycle".
    """
    if fraction < peak:
        return fraction / peak
    return (1 - fraction) / (1 - peak) if peak < 1 else 1.0


def mask_probability(fraction: float, train: TrainArguments) -> float:
    """The fraction of the tokens to predict, when this fraction of the budget is spent.

    It changes linearly from `train.mask_probability` to `train.final_mask_probability`. Between them it is a multiple
    of 0.025, because a compiled model is compiled again for each number of masks.
    """
    first, last = train.mask_probability, train.final_mask_probability
    if last is None or fraction == 0:
        return first
    value = round(round((first + (last - first) * fraction) / 0.025) * 0.025, 3)
    return min(max(value, min(first, last)), max(first, last))


def micro_batches(fraction: float, train: TrainArguments, processes: int = 1) -> int:
    """Micro-batches that each process accumulates into one optimiser step, at least 1.

    The batch grows linearly from one micro-batch per process to `train.batch_size` sequences, which it reaches at the
    fraction `train.batch_ramp` of the budget.

    Source: arXiv 2212.14034, section 4.3, "batch size schedule".
    """
    largest = math.ceil(train.batch_size / (train.micro_batch_size * processes))
    ramp = min(1.0, fraction / train.batch_ramp) if train.batch_ramp > 0 else 1.0
    return max(1, round(largest * ramp))
