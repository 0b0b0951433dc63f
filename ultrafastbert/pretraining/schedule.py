"""What depends on how much of the budget is spent: the learning rate, the size of the batch, the end.

The budget may be hours, steps or tokens; everything else sees only the share of it that is spent, in [0, 1].
"""

import math
from dataclasses import dataclass

from ultrafastbert.pretraining.arguments import TrainArguments


@dataclass
class Progress:
    """What a run has spent so far: all the state there is besides model, optimiser and random generators."""

    step: int = 0  # optimiser steps, those left out for a loss that was not finite included
    rows: int = 0  # rows of training data seen, over all devices
    tokens: int = 0
    seconds: float = 0.0  # wall-clock time in the training loop, over all resumed runs
    skipped: int = 0  # steps left out in all
    skipped_in_a_row: int = 0

    def share_of_budget(self, train: TrainArguments) -> float:
        """The share of the budget spent, 0 to 1; of several budgets, the one closest to its end counts."""
        spent = {"budget_hours": self.seconds / 3600, "max_steps": self.step, "max_tokens": self.tokens}
        return min(1.0, max(spent[name] / budget for name, budget in train.budgets.items()))


def triangle(share: float, peak: float) -> float:
    """One cycle: from 0 at share 0 linearly to 1 at share `peak`, and back to 0 at share 1.

    Source: arXiv 2212.14034, section 4.3, "one-cycle".
    """
    if share < peak:
        return share / peak
    return (1 - share) / (1 - peak) if peak < 1 else 1.0


def micro_batches(share: float, train: TrainArguments, processes: int = 1) -> int:
    """Forward passes that each process accumulates into one optimiser step, at least 1.

    The batch grows linearly from one micro-batch a process to `batch_size` rows, which it has from the share
    `batch_ramp` on.

    Source: arXiv 2212.14034, section 4.3, "batch size schedule".
    """
    largest = math.ceil(train.batch_size / (train.micro_batch_size * processes))
    ramp = min(1.0, share / train.batch_ramp) if train.batch_ramp > 0 else 1.0
    return max(1, round(largest * ramp))
