"""Which arithmetic the two loops use; weights and optimiser are float32 in any case."""

import torch


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether forward and backward passes run in bfloat16: as `precision` says (`bf16`, `fp32`), or for `auto` on a
    GPU that has it itself."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"
