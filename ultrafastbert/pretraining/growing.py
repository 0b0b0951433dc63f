"""Growing the trees that have leaves: their decisions are made once, from what the encoder has learned until then."""

import torch
from accelerate.utils import broadcast
from torch import Tensor

from ultrafastbert.layers.usage import observe_inputs
from ultrafastbert.pretraining.data.batches import MaskedBatches
from ultrafastbert.pretraining.step import TrainingStep

TOKENS_PER_LEAF = 64
"""In the sample that decisions are made from."""


@torch.no_grad()
def grow_trees(step: TrainingStep, batches: MaskedBatches, first: int, mask_probability: float) -> int:
    """Splits the layers of a model that are a `HardFFF`; the output of the model does not change.

    Weights and the optimiser's averages of all leaves start as those of the first. All processes get the same trees.

    Args:
        step: with the model and its optimisers.
        batches: the sample's.
        first: sequence of the training data with which the sample begins.
        mask_probability: of the sample.

    Returns:
        The number of layers that were split.
    """
    step.model.eval()
    layers = [tree for tree in step.trees if tree.depth > 0]
    for layer in layers:  # one after the other, because the inputs of one fit into memory
        inputs: list[Tensor] = []
        with observe_inputs([layer], lambda _, x, inputs=inputs: inputs.append(x.flatten(0, -2).float())):
            needed, at = TOKENS_PER_LEAF * 2**layer.depth, first
            while sum(map(len, inputs)) < needed:
                batch = batches.read(at, mask_probability)
                with torch.compiler.set_stance("force_eager"), step.autocast():
                    step.model(batch.input_ids, masked_positions=batch.masked_positions)
                at += batches.size
        layer.split_by_variance(torch.cat(inputs))
        for node in (layer.node_weight_in, layer.node_bias_in):
            node.copy_(broadcast(node))
    leaves = [p for layer in layers for name, p in layer.named_parameters() if name.startswith("leaf_")]
    for optimizer in step.optimizers:
        for average in (value for leaf in leaves for value in optimizer.state.get(leaf, {}).values()):
            if average.dim() > 0:
                average[1:] = average[:1].clone()
    step.model.train()
    return len(layers)
