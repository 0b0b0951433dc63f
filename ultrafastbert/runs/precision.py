"""The arithmetic of training; weights and optimiser state are always float32."""

import torch


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether passes run in bfloat16: `auto` chooses it on a GPU that supports it without emulation."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"
