"""The device and the versions that a result was computed with."""

import platform
from importlib import metadata

import torch

from ultrafastbert.utils.hardware import device_name


def environment(device: torch.device | str, *packages: str) -> dict[str, str]:
    """The name of the device, and the versions of Python, PyTorch and other distributions."""
    versions = {name: metadata.version(name) for name in packages}
    return {"device": device_name(device), "python": platform.python_version(), "torch": torch.__version__} | versions
