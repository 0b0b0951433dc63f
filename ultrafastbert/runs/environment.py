"""What a result was computed on and with."""

import platform
from importlib import metadata

import torch

from ultrafastbert.utils.hardware import device_name


def environment(device: torch.device | str, *packages: str) -> dict[str, str]:
    """The device by name, and the versions of Python, PyTorch and `packages`, for the records of a run.

    Args:
        device: that the run uses.
        packages: further distributions whose versions matter, such as `transformers`.
    """
    versions = {name: metadata.version(name) for name in packages}
    return {"device": device_name(device), "python": platform.python_version(), "torch": torch.__version__} | versions
