"""AdamW, with weight decay on the weights of linear layers, embeddings and trees only."""

import torch
from torch import nn

from ultrafastbert.layers.fff import FFF


def build_optimizer(
    model: nn.Module, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over all trainable parameters of `model`, in the fused implementation.

    Norms, biases (a tree's `bias_in` too, although it is a matrix) and scales have no weight decay. The fused
    implementation reads its gradients once, and skips a step on the device if its `found_inf` says so.
    """
    decayed: set[torch.Tensor] = set()
    for module in model.modules():
        if isinstance(module, FFF):
            decayed |= {module.weight_in, module.weight_out}
        elif isinstance(module, nn.Linear | nn.Embedding):
            decayed.add(module.weight)
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p in decayed], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
