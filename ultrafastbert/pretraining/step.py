"""The parts of a training step, for every loop that makes one: what a model is trained with, the loss, the update.

On a GPU nothing here waits for it.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from ultrafastbert.pretraining.arguments import TrainArguments
from ultrafastbert.pretraining.data.masking import MaskedBatch
from ultrafastbert.runs.optimizer import build_optimizer
from ultrafastbert.runs.precision import uses_bf16


def prepare_training(
    model: nn.Module, train: TrainArguments, accelerator: Accelerator
) -> tuple[nn.Module, AcceleratedOptimizer, Callable[[], AbstractContextManager]]:
    """What a model, already on the accelerator's device, is trained with, as `train` says.

    The model itself is compiled where it is to be, and put into training mode.

    Returns:
        what to call, which is `model` or its data-parallel wrapper; the optimiser; the autocast of forward passes.
    """
    device = accelerator.device
    if train.compile or (train.compile is None and device.type == "cuda"):
        model.compile()
    optimizer = build_optimizer(model, train.lr, train.betas, train.eps, train.weight_decay)
    wrapped_model, optimizer = accelerator.prepare(model, optimizer)
    model.train()
    autocast = functools.partial(
        torch.autocast, device.type, dtype=torch.bfloat16, enabled=uses_bf16(train.precision, device)
    )
    return wrapped_model, optimizer, autocast


def to_device(rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies from ordinary memory; from pinned memory where the host need not wait then."""
    if device.type == "cuda":
        rows = rows.pin_memory()
    return rows.to(device, non_blocking=True)


def masked_loss(model: nn.Module, batch: MaskedBatch, autocast: Callable[[], AbstractContextManager]) -> torch.Tensor:
    """The mean cross-entropy at the masked positions, in nats."""
    with autocast():
        return model(input_ids=batch.input_ids, labels=batch.labels, masked_positions=batch.masked_positions).loss


def update(
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    loss: torch.Tensor,
    max_grad_norm: float,
    accelerator: Accelerator,
) -> torch.Tensor:
    """Clips the gradients, and makes a step with them if they and the loss are finite; then there are no gradients.

    Returns:
        float32 `(2,)` on the model's device: `loss`, averaged over the processes, and the norm of the gradients before
        they were clipped. If either is not finite, weights and optimiser are as they were.
    """
    norm = accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
    values = torch.stack([accelerator.reduce(loss, "mean").float(), norm.float()])
    # A fused optimiser looks at this on the device, as it does for gradient scalers, where an `if` would wait.
    optimizer.optimizer.found_inf = (~values.isfinite().all()).float()
    optimizer.step()
    optimizer.zero_grad()
    return values
