"""Validation: loss and accuracy at masked positions, and how much of each tree is in use.

A tree that sends all tokens to few leaves has collapsed: most of its neurons no longer take part. The share of
leaves that are used, and the entropy of their use relative to an even spread, show it layer by layer.
"""

from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import nn

from ultrafastbert.layers.usage import LeafCounter
from ultrafastbert.pretraining.data.masking import Masker


@dataclass
class Evaluation:
    loss: float  # nats a masked token
    accuracy: float  # share of masked tokens whose most probable prediction is right
    leaves_used: list[float] = field(default_factory=list)  # per layer of trees, share of leaves that got a token
    leaf_entropy: list[float] = field(default_factory=list)  # per layer of trees, 0 (one leaf) to 1 (all alike)


@torch.no_grad()
def evaluate(
    model: nn.Module, rows: torch.Tensor, masker: Masker, batch_size: int, accelerator: Accelerator, autocast
) -> Evaluation:
    """Evaluates on int64 `(rows, sequence_length)`, masked in the same way at every call; all processes take part.

    Args:
        autocast: makes a context manager in which the model's forward pass runs.
    """
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=accelerator.device)  # loss, right predictions, predictions
    starts = range(0, len(rows), batch_size)[accelerator.process_index :: accelerator.num_processes]
    # Eager, because hooks do not reach into compiled code and a graph for evaluation costs more than it saves.
    with LeafCounter(model) as leaves, torch.compiler.set_stance("force_eager"):
        for start in starts:
            batch = masker(rows[start : start + batch_size].to(accelerator.device), place=start)
            with autocast():
                logits = model(batch.input_ids, masked_positions=batch.masked_positions).logits.float()
            labels = batch.labels.gather(1, batch.masked_positions).flatten()
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels, reduction="sum")
            right = (logits.flatten(0, 1).argmax(-1) == labels).sum()
            sums += torch.stack([loss.double(), right.double(), (labels != -100).sum().double()])
    model.train()
    loss, right, count = accelerator.reduce(sums).tolist()
    leaves.counts = [accelerator.reduce(counts) for counts in leaves.counts]
    return Evaluation(loss / count, right / count, *leaves.usage())
