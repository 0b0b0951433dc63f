"""Validation: loss and accuracy at masked positions, and how evenly the leaves of the trees are used.

A tree that sends all tokens to few leaves has collapsed: most of its neurons are no longer used. The fraction of
leaves that are used, and the entropy of their use relative to an even spread, show this for each layer.
"""

from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import nn

from ultrafastbert.layers.usage import LeafCounter
from ultrafastbert.pretraining.data.masking import Masker
from ultrafastbert.pretraining.step import TrainingStep


@dataclass
class Evaluation:
    """The result of a validation.

    Attributes:
        loss: mean over the masked tokens. [nats]
        accuracy: fraction of masked tokens that are predicted correctly.
        leaves_used: per layer of trees, the fraction of leaves that at least one token reached.
        leaf_entropy: per layer of trees, the entropy of leaf use, 0 (one leaf) to 1 (even).
    """

    loss: float
    accuracy: float
    leaves_used: list[float] = field(default_factory=list)
    leaf_entropy: list[float] = field(default_factory=list)


@torch.no_grad()
def evaluate(step: TrainingStep, sequences: torch.Tensor, masker: Masker, batch_size: int) -> Evaluation:
    """Evaluates a model, which is in training mode afterwards; all processes take part.

    Args:
        step: with the model.
        sequences: int64 `(sequences, sequence_length)`, masked in the same way at every call.
        masker: masks them.
        batch_size: of a forward pass in each process. [sequences]
    """
    model, accelerator = step.model, step.accelerator
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=accelerator.device)  # loss, correct predictions, predictions
    together = batch_size * accelerator.num_processes  # masked as one batch, however many processes there are
    # Eager, because hooks do not reach into compiled code, and compiling for evaluation costs more than it saves.
    with LeafCounter(model) as leaves, torch.compiler.set_stance("force_eager"):
        for start in range(0, len(sequences), together):
            batch = masker(sequences[start : start + together].to(accelerator.device), place=start)
            batch = batch.part(accelerator.process_index * batch_size, batch_size)
            with step.autocast():
                logits = model(batch.input_ids, masked_positions=batch.masked_positions).logits.float()
            logits = logits.flatten(0, 1)  # (masked tokens, vocab)
            labels = batch.labels.gather(1, batch.masked_positions).flatten()
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            correct = (logits.argmax(-1) == labels).sum()
            sums += torch.stack([loss.double(), correct.double(), (labels != -100).sum().double()])
    model.train()
    loss, correct, count = _sum_over_processes(sums, accelerator).tolist()
    leaves.counts = [_sum_over_processes(counts, accelerator) for counts in leaves.counts]
    return Evaluation(loss / count, correct / count, *leaves.usage())


def _sum_over_processes(tensor: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    return accelerator.reduce(tensor)  # pyright: ignore[reportReturnType]  # a tensor for a tensor
