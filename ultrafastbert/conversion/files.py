"""Files of checkpoint directories: configurations, and weights in all their formats."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from torch import Tensor

from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.validation import Rule, check

State = dict[str, Tensor]

WEIGHTS_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "model.pth",
)
"""The first of them that exists is read."""
NAME_ON_THE_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "[0-9]*/*"]
"""What a model on the Hub may consist of; directories with a number are modules of sentence-transformers."""
HUB_EXPORTS = ["onnx/*", "openvino/*"]
OBJECT = Rule(lambda value: isinstance(value, dict) and len(value) > 0, "an object that is not empty")


class ConversionError(UserError, ValueError):
    """A checkpoint that cannot be converted; the message names the file, and the option or tensor."""


def exactly(value: Any) -> Rule:
    """This value only."""
    return Rule(lambda other: other == value, repr(value))


@contextmanager
def errors_name(file: Path) -> Iterator[None]:
    """Turns an error about the content of `file` into a ConversionError that starts with the file's name."""
    try:
        yield
    except (ValueError, StrictDataclassError) as error:
        raise ConversionError(f"{file}: {error}") from error


def find_model(source: str | Path) -> Path:
    """The directory of a model, which is downloaded if it is on the Hub: configuration, tokenizer, PyTorch weights.

    Args:
        source: a directory or the name of a model on the Hub.

    Raises:
        ConversionError: `source` is neither, or cannot be downloaded.
    """
    directory, name = Path(source), str(source)
    if directory.is_dir():
        return directory
    if directory.exists() or not NAME_ON_THE_HUB.fullmatch(name):
        found = "is not a directory" if directory.exists() else "does not exist"
        raise ConversionError(f"{source} {found}, and is not the name of a model on the Hub")
    try:
        directory = Path(snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=HUB_EXPORTS))
        if not any(directory.glob("*.safetensors")):
            directory = Path(
                snapshot_download(name, allow_patterns=["pytorch_model*.bin"], ignore_patterns=HUB_EXPORTS)
            )
    except Exception as error:  # of the Hub, the network or the disk
        raise ConversionError(
            f"{source} is not a directory here, and cannot be downloaded from the Hub: {error}"
        ) from error
    return directory


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object of a checkpoint directory; raises a ConversionError if the file is anything else."""
    if not file.is_file():
        raise ConversionError(f"{file} is missing, so {file.parent} is not a checkpoint directory")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConversionError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{file} holds a {type(content).__name__}; it should hold an object")
    return content


def read_weights(directory: Path) -> tuple[Path, State]:
    """Reads the weights of a checkpoint directory: their file, or the index of its shards, and all tensors by name.

    The prefixes that `torch.compile` and `DistributedDataParallel` add to names are removed. Raises a ConversionError
    if a file is missing or broken, or two tensors have the same name.
    """
    file = next((directory / name for name in WEIGHTS_FILES if (directory / name).is_file()), None)
    if file is None:
        raise ConversionError(f"{directory} has no weights; it should have one of {', '.join(WEIGHTS_FILES)}")
    state: State = {}
    for shard in _shards(file) if file.suffix == ".json" else [file]:
        for name, tensor in _read_tensors(shard).items():
            name = re.sub(r"^((_orig_mod|module)\.)+", "", name)
            if name in state:
                raise ConversionError(f"{shard}: a second tensor is named {name}")
            state[name] = tensor
    return file, state


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map", {})
    with errors_name(index):
        check("weight_map", weight_map, OBJECT)
    files = [index.parent / str(name) for name in sorted(set(weight_map.values()))]
    for file in files:
        if not file.is_file():
            raise ConversionError(f"{index} names {file.name}, which is missing")
    return files


def _read_tensors(file: Path) -> State:
    try:
        is_safe = file.suffix == ".safetensors"
        state = load_file(file) if is_safe else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can raise almost anything
        raise ConversionError(f"{file} cannot be read: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ConversionError(f"{file} holds a {type(state).__name__}; it should hold named tensors and nothing else")
    return state
