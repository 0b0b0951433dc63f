"""The device and the versions that a result was computed with."""

import platform
from importlib import metadata

import torch

from ultrafastbert.utils.hardware import device_name


def environment(device: torch.device | str, *packages: str) -> dict[str, str]:
    """The name of the device, and the versions of Python, PyTorch and `packages`.

    Args:
        device: that the run uses.
        packages: other distributions, such as `transformers`.
    """
    versions = {name: metadata.version(name) for name in packages}
    return {"device": device_name(device), "python": platform.python_version(), "torch": torch.__version__} | versions
