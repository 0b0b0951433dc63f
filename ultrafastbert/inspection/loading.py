"""What is looked into: encoders, from wherever they are, and texts.

Notable: a checkpoint of pretraining holds weights alone. What they are the weights of, and the tokenizer, are in the
run's `final/` when it has ended; until then its `config.yaml` says where the data is, and the data has a tokenizer.
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
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from ultrafastbert.layers.fff import FFF
from ultrafastbert.layers.usage import tree_layers
from ultrafastbert.modeling_ultrafastbert import UltraFastBertForMaskedLM
from ultrafastbert.pretraining.arguments import ModelArguments
from ultrafastbert.pretraining.data.arguments import DataArguments
from ultrafastbert.pretraining.data.packed import open_packed
from ultrafastbert.pretraining.data.sources import TextFile
from ultrafastbert.runs.checkpoints import numbered_checkpoints, read_checkpoint, step_of
from ultrafastbert.utils.errors import UserError


@dataclass
class Encoder:
    """An encoder to look into.

    Attributes:
        name: as it was given.
        model: without a head, in evaluation mode.
        tokenizer: of the model.
        tokens: how many it was pretrained on, None where nothing says so.
    """

    name: str
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    tokens: int | None


def find_models(names: list[str]) -> list[str]:
    """The names of models, with the checkpoints of a pretraining run in the place of its directory. Checkpoints come
    first, in the order of their steps, and then the others, in the order given.

    Raises:
        UserError: a run without checkpoints.
    """
    found = []
    for name in names:
        directory = Path(name) / "checkpoints"
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
        UserError: nothing that can be loaded, or a model without decisions to look into.
    """
    path = Path(name)
    if not path.exists() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UserError(f"model {name} does not exist, and is not a name on the Hub")
    load = _load_checkpoint if _is_checkpoint(path) else _load_pretrained
    with _quiet_transformers():
        encoder = load(name)
    encoder.model.eval()
    _check_trees(encoder)
    _check_tokenizer(encoder)
    return encoder


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No bars, and no word about the weights of a head, which are left out on purpose."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load_pretrained(name: str) -> Encoder:
    try:
        model, found = AutoModel.from_pretrained(name, output_loading_info=True)
    except Exception as error:  # whatever transformers, safetensors and the Hub raise
        raise UserError(f"model {name} cannot be loaded: {error}") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise UserError(
            f"the tokenizer of model {name}, which should be beside it, cannot be loaded: {error}"
        ) from error
    if found["missing_keys"]:
        raise UserError(f"model {name} has no weights for {', '.join(sorted(found['missing_keys']))}")
    return Encoder(name, model, tokenizer, _tokens_spent(Path(name)))


def _tokens_spent(directory: Path) -> int | None:
    """What pretraining wrote beside the model in `final/`, if it is one of those."""
    try:
        return json.loads((directory / "pretraining.json").read_text(encoding="utf-8"))["tokens"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _load_checkpoint(name: str) -> Encoder:
    path = Path(name)
    content = read_checkpoint(path)
    config, tokenizer = _of_final(path) or _of_data(path, content)
    model = UltraFastBertForMaskedLM(config)
    try:
        load_model(model, path / "model.safetensors")
    except Exception as error:  # what safetensors says of a file, torch of shapes
        raise UserError(f"checkpoint {name} cannot be loaded: {error}") from error
    return Encoder(name, model.model, tokenizer, content["progress"]["tokens"])


def _of_final(checkpoint: Path) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase] | None:
    """Configuration and tokenizer of the model with which the checkpoint's run ended, None if it did not yet."""
    final = checkpoint.resolve().parent.parent / "final"
    if not final.is_dir():
        return None
    try:
        return AutoConfig.from_pretrained(final), AutoTokenizer.from_pretrained(final)
    except Exception as error:
        raise UserError(
            f"checkpoint {checkpoint} needs the model in {final}, which cannot be read: {error}"
        ) from error


def _of_data(checkpoint: Path, content: dict) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """The same by the data that the run reads."""
    settings = checkpoint.resolve().parent.parent / "config.yaml"
    try:
        comment = re.search(r"^# data: (.*), fingerprint ", settings.read_text(encoding="utf-8"), re.MULTILINE)
        data = open_packed(comment[1])
    except (OSError, UserError, TypeError) as error:  # TypeError: there is no such comment
        raise UserError(
            f"checkpoint {checkpoint} is of a run that has not ended, and its data, which has the tokenizer, is not"
            f" where {settings} says: {error}"
        ) from error
    if data.fingerprint != content["data_fingerprint"]:
        raise UserError(f"checkpoint {checkpoint} is of other data than there is now in {data.directory}")
    config = ModelArguments(**content["arguments"]["model"]).build_config(data.vocab_size, data.sequence_length)
    return config, AutoTokenizer.from_pretrained(data.tokenizer_directory)


def _check_trees(encoder: Encoder) -> None:
    if tree_layers(encoder.model):
        return
    trees = [module for module in encoder.model.modules() if isinstance(module, FFF)]
    what = "trees of depth 0, which decide nothing" if trees else "no trees in its layers"
    raise UserError(
        f"model {encoder.name} is a {type(encoder.model).__name__} with {what}: there is nothing to look into"
    )


def _check_tokenizer(encoder: Encoder) -> None:
    known, needed = encoder.model.config.vocab_size, len(encoder.tokenizer)
    if needed > known:
        raise UserError(f"model {encoder.name} knows {known:,} tokens; its tokenizer has {needed:,}")
    if encoder.tokenizer.pad_token is None:
        raise UserError(f"model {encoder.name} has a tokenizer without a token for padding; it should have one")


def read_texts(files: list[str], most: int | None) -> list[str]:
    """The texts in files: lines (.txt) that are not blank, the field `text` of objects (.jsonl) or the column `text`
    (.parquet), each also compressed (.gz, .xz, .zst).

    Args:
        most: the first so many of all of them together; None for all.

    Raises:
        UserError: a file that is not there, of another kind, or broken.
    """
    texts = []
    for name in files:
        if not Path(name).is_file():
            raise UserError(f"file {name} {'is not a file' if Path(name).exists() else 'does not exist'}")
        with tempfile.TemporaryDirectory() as scratch:
            found = (text for text, _ in TextFile(Path(name), DataArguments()).texts(Path(scratch)) if text.strip())
            texts += islice(found, None if most is None else most - len(texts))
    return texts
