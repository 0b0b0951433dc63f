"""What all operators require of their tensors besides shapes: a dense layout, one device, one floating dtype."""

import torch
from torch import Tensor, strided

Named = dict[str, Tensor]


def check_layouts(named: Named) -> None:
    """Raises a ValueError for a tensor that is sparse, nested or in another layout than PyTorch's ordinary one."""
    for name, tensor in named.items():
        if tensor.is_nested or tensor.layout != strided:
            layout = "nested" if tensor.is_nested else tensor.layout
            raise ValueError(f"{name} has layout {layout}; it should be a dense tensor, of layout {strided}")


def check_devices(named: Named) -> None:
    """Raises a TypeError for a dtype that is not floating-point, a ValueError for a device other than that of `x`."""
    x = named["x"]
    for name, tensor in named.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{name} has dtype {tensor.dtype}; it should have a floating-point dtype")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on device {tensor.device}; it should be on the device of x, {x.device}")


def check_dtypes(named: Named) -> None:
    """Raises a TypeError for a dtype other than that of `x`."""
    dtype = named["x"].dtype
    for name, tensor in named.items():
        if tensor.dtype != dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype}; it should have the dtype of x, {dtype}")


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks for on the device of `x`, as for linear layers; None if it does not."""
    device = x.device.type
    if _has_autocast(device) and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return None


@torch.compiler.assume_constant_result  # PyTorch 2.11 cannot trace it
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)
