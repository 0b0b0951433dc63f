"""The arithmetic of training; weights and optimiser state are always float32."""

import functools
import statistics

import torch

from ultrafastbert.utils.timing import take_turns


def uses_bf16(precision: str, device: torch.device, width: int | None = None) -> bool:
    """Whether passes run in bfloat16.

    Args:
        precision: `bf16`, `fp32`, or `auto`, which chooses bf16 on a GPU that supports it without emulation, and on a
            CPU that trains a linear layer of `width` in it in less than 80 % of the time (measured once per process).
        device: of the model.
        width: of the model's layers; None: `auto` is float32 on a CPU.
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and width is not None and _cpu_is_faster_in_bf16(width)


@functools.cache
def _cpu_is_faster_in_bf16(width: int, tokens: int = 1024) -> bool:
    """Times passes through a linear layer, conversions included.

    Flags of the processor do not tell: some that have bfloat16 instructions gain little, and on others PyTorch
    emulates them at a fraction of the speed.
    """
    generator = torch.Generator().manual_seed(0)  # training's random numbers stay as they are
    weight = torch.randn(3 * width, width, generator=generator).requires_grad_()
    tokens_in = torch.randn(tokens, width, generator=generator).requires_grad_()

    def train(enabled: bool) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            output = torch.nn.functional.linear(tokens_in, weight)
        torch.autograd.grad(output.sum(), (tokens_in, weight))

    train(True)  # the first pass of a process starts threads
    times = take_turns({"bf16": lambda: train(True), "fp32": lambda: train(False)}, seconds=0.1)
    return statistics.median(times["bf16"]) < 0.8 * statistics.median(times["fp32"])
