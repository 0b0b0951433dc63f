"""AdamW, with weight decay on the weights of linear layers, embeddings and trees only; Muon for layers' matrices."""

from collections.abc import Callable, Container

import torch
from torch import nn

from ultrafastbert.layers.fff import FFF
from ultrafastbert.layers.hard import HardFFF


def build_optimizer(
    model: nn.Module,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    others: Container[torch.Tensor] = (),
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `model`, those of `others` excepted, in the fused implementation.

    Norms, biases (a tree's `bias_in` too, although it is a matrix) and scales have no weight decay. The fused
    implementation reads its gradients once, and skips a step on the device if its `found_inf` says so.
    """
    decayed: set[torch.Tensor] = set()
    for module in model.modules():
        if isinstance(module, FFF):
            decayed |= {module.weight_in, module.weight_out}
        elif isinstance(module, HardFFF):
            decayed |= {module.leaf_weight_in, module.leaf_weight_out}
        elif isinstance(module, nn.Linear | nn.Embedding):
            decayed.add(module.weight)
    parameters = [p for p in model.parameters() if p.requires_grad and p not in others]
    groups = [
        {"params": [p for p in parameters if p in decayed], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def layer_matrices(layers: nn.Module) -> list[torch.Tensor]:
    """The trainable weights of the linear layers in `layers`, for Muon.

    Embeddings, decoders, norms, biases and trees, of which a token uses single rows, stay with AdamW.
    """
    linear = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    return [module.weight for module in linear if module.weight.requires_grad]


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`, which like the fused AdamW skips a step on the device if `found_inf` is not 0.

    The step is taken and then undone, because PyTorch's implementation has no other way that the host need not wait
    for; the copies cost little beside the iterations.

    Source: https://kellerjordan.github.io/posts/muon; the scale of an update is sqrt(max(1, rows / columns)).
    """

    found_inf: torch.Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes a step; see `torch.optim.Muon.step`."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter in parameters:  # as the step would, so that they can be restored
            self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        tensors = [*parameters, *(self.state[parameter]["momentum_buffer"] for parameter in parameters)]
        before = [tensor.clone() for tensor in tensors] if self.found_inf is not None else []
        result = super().step(closure)
        if self.found_inf is not None:
            skips = self.found_inf.bool()
            for tensor, earlier in zip(tensors, before, strict=True):
                tensor.copy_(torch.where(skips, earlier, tensor))
        return result
