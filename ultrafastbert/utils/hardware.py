"""The processor and GPU of this machine by name, and the peaks that data sheets state for GPUs."""

import contextlib
import functools
import os
import platform
from pathlib import Path
from typing import NamedTuple

import torch


def device_name(device: torch.device | str) -> str:
    """The name of the GPU, or for any other device of the processor, as the system reports it."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else processor()


@functools.cache
def processor() -> str:
    """The processor's name, as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def memory_size() -> int:
    """The memory that this process can use, in bytes: that of the machine, or the limit of its container."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError):  # no such limit
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(sizes)


def processor_has(*features: str) -> bool:
    """Whether the processor has one of these instruction sets, by their names in `torch.cpu.get_capabilities`."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(feature, False) for feature in features)


def multiplies_int8() -> bool:
    """Whether the processor adds products of 8-bit numbers in 32 bits (VNNI, AMX)."""
    return processor_has("avx512_vnni", "avx_vnni", "amx_int8")


class Peak(NamedTuple):
    """The highest rates of a GPU.

    Attributes:
        bandwidth: of its memory. [bytes/s]
        flops: of dense matrix products, by dtype. [1/s]
    """

    bandwidth: float
    flops: dict[torch.dtype, float]


def _peak(bandwidth: float, half: float, single: float) -> Peak:
    """From terabytes and teraflops a second; float16 and bfloat16 have one rate."""
    flops = {torch.bfloat16: half * 1e12, torch.float16: half * 1e12, torch.float32: single * 1e12}
    return Peak(bandwidth * 1e12, flops)


PEAKS = {
    "NVIDIA H100 80GB HBM3": _peak(3.35, 989.4, 66.9),
    "NVIDIA H100 PCIe": _peak(2.0, 756, 51),
    "NVIDIA H200": _peak(4.8, 989.4, 66.9),
    "NVIDIA B200": _peak(8.0, 2250, 75),
    "NVIDIA A100-SXM4-80GB": _peak(2.039, 312, 19.5),
    "NVIDIA A100-SXM4-40GB": _peak(1.555, 312, 19.5),
    "NVIDIA A100 80GB PCIe": _peak(1.935, 312, 19.5),
    "NVIDIA L4": _peak(0.3, 121, 30.3),
    "NVIDIA GeForce RTX 3090": _peak(0.936, 71, 35.6),
    "NVIDIA GeForce RTX 4090": _peak(1.008, 165.2, 82.6),
    "NVIDIA GeForce RTX 5090": _peak(1.792, 209.5, 104.8),
}
"""By the name that `torch.cuda.get_device_name` returns; the H100 of the first name is the SXM one.

Rates are those of tensor cores without sparsity that add in float32; of float32, those without TF32, as PyTorch
multiplies by default.

Source: NVIDIA's data sheets, whose rates for tensor cores are halved where they assume sparsity, and for the digits
after the point and the GeForce cards the white papers of the architectures (Ampere GA102, Ada, Hopper, Blackwell).
"""


def utilization(flops: float, seconds: float, device: torch.device | str, dtype: torch.dtype) -> float | None:
    """Model FLOPs utilization (MFU): `flops` in `seconds` as a fraction of the device's peak.

    Args:
        flops: floating-point operations that a model needs, as `pretraining.flops.training_flops` counts them.
        seconds: how long they took.
        device: that they ran on.
        dtype: of the matrix products.

    Returns:
        A fraction, or None if the device's peak is not known.
    """
    peak = PEAKS.get(device_name(device))
    return None if peak is None else flops / seconds / peak.flops[dtype]
