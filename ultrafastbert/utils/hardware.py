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


HOPPER = {torch.bfloat16: 989.4e12, torch.float16: 989.4e12, torch.float32: 66.9e12}
"""On tensor cores without sparsity; float32 as PyTorch multiplies it by default, without TF32."""

PEAKS = {"NVIDIA H100 80GB HBM3": Peak(3.35e12, HOPPER), "NVIDIA H200": Peak(4.8e12, HOPPER)}
"""By the name that `torch.cuda.get_device_name` returns; the H100 of this name is the SXM one.

Source: NVIDIA's data sheets of the H100 and H200 (SXM), whose tensor-core rates are halved because they assume
sparsity, and the white paper "NVIDIA H100 Tensor Core GPU Architecture" for the digits after the point.
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
