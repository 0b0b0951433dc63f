"""A training step: forward and backward passes of its micro-batches, and the update of the weights.

On a GPU, nothing here waits for the device.
"""

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from ultrafastbert.layers.hard import HardFFF
from ultrafastbert.pretraining.arguments import TrainArguments
from ultrafastbert.pretraining.data.masking import MaskedBatch
from ultrafastbert.runs.optimizer import Muon, build_optimizer, layer_matrices

BALANCE_RATE = 0.05
"""How fast the thresholds of trees with leaves follow their tokens, in standard deviations a step; see `balance`."""


class TrainingStep:
    """A model, its optimiser, and the parts of a training step.

    Args:
        model: a masked language model on the accelerator's device; it is compiled if `train` says so, and put into
            training mode.
        train: optimiser and clipping.
        accelerator: of the processes that train together.
        in_bf16: whether forward and backward passes run in bfloat16.

    Attributes:
        wrapped_model: the model, or its data-parallel wrapper.
        in_bf16: as given.
        autocast: returns the context of a forward pass.
    """

    def __init__(self, model: nn.Module, train: TrainArguments, accelerator: Accelerator, in_bf16: bool):
        self.model, self.accelerator, self.max_grad_norm = model, accelerator, train.max_grad_norm
        device = accelerator.device
        if train.compile or (train.compile is None and device.type == "cuda"):
            model.compile()
        matrices = layer_matrices(model.get_submodule("model.layers")) if train.optimizer == "muon" else []
        options = (train.lr, train.betas, train.eps, train.weight_decay)
        optimizers: list[Optimizer] = [build_optimizer(model, *options, others=set(matrices))]
        if matrices:
            optimizers.append(Muon(matrices, lr=train.muon_lr, weight_decay=train.weight_decay))
        self.lr_ratios = (1.0, train.muon_lr / train.lr)[: len(optimizers)]
        self.wrapped_model, *self.optimizers = accelerator.prepare(model, *optimizers)
        model.train()
        self.trees = [module for module in model.modules() if isinstance(module, HardFFF)]
        for tree in self.trees:
            tree.leaf_counts = torch.zeros(2**tree.depth, device=device)
        self.in_bf16 = in_bf16
        self.autocast: Callable[[], AbstractContextManager] = functools.partial(
            torch.autocast, device.type, dtype=torch.bfloat16, enabled=self.in_bf16
        )

    def loss(self, batch: MaskedBatch) -> torch.Tensor:
        """The mean cross-entropy at the masked positions, in nats."""
        with self.autocast():
            return self.wrapped_model(
                input_ids=batch.input_ids, labels=batch.labels, masked_positions=batch.masked_positions
            ).loss

    def accumulate(self, batch: MaskedBatch, count: int = 1, last: bool = True) -> torch.Tensor:
        """Adds the gradients of one micro-batch of `count`.

        Args:
            batch: the micro-batch of this process.
            count: of micro-batches in the step.
            last: whether it is the last of the step; only then do processes exchange gradients.

        Returns:
            The loss of the micro-batch divided by `count`: a scalar on the device, without gradient.
        """
        with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped_model):
            loss = self.loss(batch) / count
            self.accelerator.backward(loss)
        return loss.detach()

    def update(self, loss: torch.Tensor, lr: float) -> torch.Tensor:
        """Clips the gradients, updates the weights if loss and gradients are finite, and clears the gradients.

        Args:
            loss: of the step in this process.
            lr: the learning rate of AdamW; that of Muon is as large a part of its peak.

        Returns:
            float32 `(2,)` on the device: the loss, averaged over the processes, and the norm of the gradients before
            clipping. If either is not finite, weights and optimiser state are unchanged.
        """
        norm: Any = self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        mean_loss: Any = self.accelerator.reduce(loss, "mean")  # tensors both
        values = torch.stack([mean_loss.float(), norm.float()])
        found_inf = (~values.isfinite().all()).float()
        for optimizer, ratio in zip(self.optimizers, self.lr_ratios, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * ratio
            # Optimisers read this on the device, as for gradient scalers; an `if` would make the host wait.
            optimizer.optimizer.found_inf = found_inf
            optimizer.step()
            optimizer.zero_grad()
        for tree in self.trees:
            counts: Any = self.accelerator.reduce(tree.leaf_counts)
            tree.leaf_counts = counts
            tree.balance(BALANCE_RATE * (1 - found_inf))
        return values

    def discard(self) -> None:
        """Clears the gradients that were accumulated, and the counts of tokens at leaves."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        for tree in self.trees:
            tree.balance(0)

    def release(self) -> None:
        """Frees the optimiser and the data-parallel wrapper; there can be no further steps.

        The wrapper must be freed before the process group: as the last owner of the group it would join a thread that
        may be waiting for the interpreter.
        """
        del self.wrapped_model, self.optimizers
        self.accelerator.free_memory()


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies a tensor from the host's memory; to a GPU from pinned memory, so that the host does not wait."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
