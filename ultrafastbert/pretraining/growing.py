"""Growing the trees that have leaves: their decisions are made once, from what the encoder has learned until then."""

import sys

from ultrafastbert.layers.growing import grow_trees
from ultrafastbert.pretraining.data.batches import MaskedBatches
from ultrafastbert.pretraining.step import TrainingStep


def grow_from_batches(step: TrainingStep, batches: MaskedBatches, first: int, mask_probability: float) -> list[str]:
    """Splits the layers of the model in training that are a `HardFFF`; see `grow_trees`.

    Args:
        step: with the model and its optimisers.
        batches: the sample's.
        first: sequence of the training data with which the sample begins.
        mask_probability: of the sample.

    Returns:
        The names of the layers that were split.
    """
    processes = step.accelerator.num_processes

    def forward(place: int) -> None:
        for process in range(processes):  # every process sees the whole sample and makes the same decisions
            batch = batches.read(place, mask_probability, process, processes)
            with step.autocast():
                step.model(batch.input_ids, masked_positions=batch.masked_positions)

    return grow_trees(step.model, range(first, sys.maxsize, processes * batches.size), forward, step.optimizers)
