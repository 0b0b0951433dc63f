"""The arithmetic of training; weights and optimiser state are always float32."""

import torch


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether forward and backward passes run in bfloat16.

    Args:
        precision: `bf16`, `fp32`, or `auto`: bfloat16 on a GPU that supports it without emulation.
        device: that trains.
    """
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"
