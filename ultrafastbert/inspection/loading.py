"""Loads what is inspected: encoders, from models and checkpoints of pretraining, and texts.

Notable: a checkpoint has weights and configuration, but no tokenizer. The tokenizer is that of the run's `final/`, or,
if the run has not ended, of the prepared data.
"""

import json
import math
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from safetensors.torch import load_model
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ultrafastbert.configuration_ultrafastbert import UltraFastBertConfig
from ultrafastbert.layers.fff import FFF
from ultrafastbert.layers.usage import tree_layers
from ultrafastbert.modeling_ultrafastbert import UltraFastBertForMaskedLM
from ultrafastbert.pretraining.arguments import ModelArguments
from ultrafastbert.pretraining.data.arguments import DataArguments
from ultrafastbert.pretraining.data.packed import PackedData, open_packed
from ultrafastbert.pretraining.data.sources import TextFile
from ultrafastbert.runs.checkpoints import numbered_checkpoints, read_checkpoint, step_of
from ultrafastbert.runs.directory import CHECKPOINTS, CONFIG, FINAL, TRAINING_RECORD, run_of
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.transformers import quiet_transformers


@dataclass
class Encoder:
    """An encoder to inspect.

    Attributes:
        name: as it was given.
        model: without a head, in evaluation mode.
        tokenizer: of the model.
        tokens: that it was pretrained on, None if it is not known.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tokens: int | None


def find_models(names: list[str]) -> list[str]:
    """Replaces the directory of a pretraining run by its checkpoints.

    Returns:
        Checkpoints, in the order of their steps, and then models, in the order given.

    Raises:
        UserError: a run has no checkpoints.
    """
    found = []
    for name in names:
        directory = Path(name) / CHECKPOINTS
        checkpoints = numbered_checkpoints(directory) if directory.is_dir() else [name]
        if not checkpoints:
            raise UserError(f"model {name} is a run that has no checkpoint yet")
        found += map(str, checkpoints)
    return sorted(found, key=lambda name: step_of(Path(name)) if _is_checkpoint(Path(name)) else math.inf)


def _is_checkpoint(path: Path) -> bool:
    return re.fullmatch(r"step-\d+", path.name) is not None


def load_encoder(name: str) -> Encoder:
    """Loads an encoder and its tokenizer.

    Args:
        name: a directory or a name on the Hub that `AutoModel` loads, whatever head it has; or a checkpoint of
            pretraining, `OUT/checkpoints/step-N`.

    Raises:
        UserError: the model cannot be loaded, or has no trees with decisions.
    """
    path = Path(name)
    if not path.exists() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UserError(f"model {name} does not exist, and is not a name on the Hub")
    with quiet_transformers():
        encoder = _load_checkpoint(name) if _is_checkpoint(path) else _load_pretrained(name)
    encoder.model.eval()
    _check(encoder)
    return encoder


@contextmanager
def _errors_begin(message: str) -> Iterator[None]:
    """Errors of any library (transformers, safetensors, torch, the Hub) become a UserError, "MESSAGE: ERROR"."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{message}: {error}") from error


def _load_pretrained(name: str) -> Encoder:
    with _errors_begin(f"model {name} cannot be loaded"):
        model, found = AutoModel.from_pretrained(name, output_loading_info=True)
    with _errors_begin(f"the tokenizer of model {name}, which should be beside it, cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(name)
    if found["missing_keys"]:
        raise UserError(f"model {name} has no weights for {', '.join(sorted(found['missing_keys']))}")
    try:  # a run writes the tokens of pretraining beside its model
        tokens = json.loads((Path(name) / TRAINING_RECORD).read_text(encoding="utf-8"))["tokens"]
    except (OSError, ValueError, KeyError, TypeError):
        tokens = None
    return Encoder(name, model, tokenizer, tokens)


def _load_checkpoint(name: str) -> Encoder:
    model, tokenizer, tokens = load_checkpoint(Path(name))
    return Encoder(name, model.model, tokenizer, tokens)


def load_checkpoint(path: Path) -> tuple[UltraFastBertForMaskedLM, PreTrainedTokenizerBase, int]:
    """The masked language model of a checkpoint of pretraining, its tokenizer, and the tokens that it has seen.

    Raises:
        UserError: the checkpoint or its tokenizer cannot be loaded.
    """
    content = read_checkpoint(path)
    if "config" not in content:
        content |= _facts_missing_in_version_0_1(path, content)
    model = UltraFastBertForMaskedLM(UltraFastBertConfig.from_dict(content["config"]))
    with _errors_begin(f"checkpoint {path} cannot be loaded"):
        load_model(model, path / "model.safetensors")
    final = run_of(path) / FINAL
    directory = final if final.is_dir() else _open_data(path, content).tokenizer_directory
    with _errors_begin(f"checkpoint {path} needs the tokenizer in {directory}, which cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(directory)
    return model, tokenizer, content["progress"]["tokens"]


def _open_data(checkpoint: Path, content: dict) -> PackedData:
    with _errors_begin(f"checkpoint {checkpoint} is of a run that has not ended, and needs the tokenizer of its data"):
        data = open_packed(content["data_directory"])
    if data.fingerprint != content["data_fingerprint"]:
        raise UserError(f"checkpoint {checkpoint} was trained on other data than {data.directory} has now")
    return data


def _facts_missing_in_version_0_1(checkpoint: Path, content: dict) -> dict:
    """The model's configuration and the data's directory, which version 0.1 did not write to checkpoints.

    If the run has ended, its final model has the configuration. Otherwise a comment in the run's configuration file
    names the data, which determines the rest.
    """
    run = run_of(checkpoint)
    if (run / FINAL).is_dir():
        with _errors_begin(f"checkpoint {checkpoint} needs the model in {run / FINAL}, which cannot be read"):
            return {"config": AutoConfig.from_pretrained(run / FINAL).to_dict()}
    settings = (run / CONFIG).read_text(encoding="utf-8") if (run / CONFIG).is_file() else ""
    comment = re.search(r"^# data: (.*), fingerprint ", settings, re.MULTILINE)
    if comment is None:
        raise UserError(f"checkpoint {checkpoint} needs the comment in {run / CONFIG} that names its data")
    found = {"data_directory": comment[1]}
    data = _open_data(checkpoint, content | found)
    config = ModelArguments(**content["arguments"]["model"]).build_config(data.vocab_size, data.sequence_length)
    return found | {"config": config.to_dict()}


def _check(encoder: Encoder) -> None:
    if not tree_layers(encoder.model):
        trees = [module for module in encoder.model.modules() if isinstance(module, FFF)]
        found = f"{type(encoder.model).__name__} with "
        found += "trees of depth 0, which decide nothing" if trees else "no trees in its layers"
        raise UserError(f"model {encoder.name} is a {found}: there is nothing to inspect")
    known, needed = encoder.model.config.vocab_size, len(encoder.tokenizer)
    if needed > known:
        raise UserError(f"model {encoder.name} knows {known:,} tokens; its tokenizer has {needed:,}")
    if encoder.tokenizer.pad_token is None:
        raise UserError(f"model {encoder.name} has a tokenizer without a padding token; it should have one")


def read_texts(files: list[str], most: int | None) -> list[str]:
    """The texts in files that are not blank.

    Args:
        files: of lines (.txt), of objects with a field `text` (.jsonl), or with a column `text` (.parquet); they may
            be compressed (.gz, .xz, .zst).
        most: number of texts to read, in the order of the files; None for all.

    Raises:
        UserError: a file does not exist, is of another kind, or is broken.
    """
    texts = []
    for name in files:
        if not Path(name).is_file():
            raise UserError(f"file {name} {'is not a file' if Path(name).exists() else 'does not exist'}")
        with tempfile.TemporaryDirectory() as scratch:
            found = (text for text, _ in TextFile(Path(name), DataArguments()).texts(Path(scratch)) if text.strip())
            texts += islice(found, None if most is None else most - len(texts))
    return texts
