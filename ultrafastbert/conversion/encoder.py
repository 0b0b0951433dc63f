"""Writes a converted encoder as a directory that works like the original, after a comparison of their outputs.

The directory has the weights, the tokenizer and, of a model of sentence-transformers, the modules after the encoder.
It is read back and compared with the original on sample texts before it gets its name.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ultrafastbert.conversion.bert import from_bert, load_encoder, load_original
from ultrafastbert.conversion.files import ConversionError, find_model
from ultrafastbert.modeling_ultrafastbert import (
    UltraFastBertForMultipleChoice,
    UltraFastBertForSequenceClassification,
    UltraFastBertModel,
    UltraFastBertPreTrainedModel,
)
from ultrafastbert.utils.files import new_directory, written_whole
from ultrafastbert.utils.transformers import quiet_transformers

TOLERANCE = 1e-4
"""The largest difference of outputs in float32, as a fraction of the largest output if that is above 1."""
LONGEST = 512
"""The number of tokens of the longest sample, if the model has as many positions."""
TEXTS = [
    "Yes.",
    "Where were the Olympic Games of 1936 held, and who won the 100 metres?",
    "Der Fluß fließt durch drei Länder; 川は三つの国を流れる。 It flows through three countries, said Ms. O'Neil.",
]
MODULES = "modules.json"
WITHOUT_FILES = ("Normalize",)
"""Modules that need no directory."""
SENTENCE_FILES = (MODULES, "config_sentence_transformers.json", "sentence_*_config.json")


def convert_encoder(source: str | Path, destination: str | Path) -> tuple[UltraFastBertPreTrainedModel, float]:
    """Converts a checkpoint of the BERT family, with its tokenizer and its modules of sentence-transformers.

    Args:
        source: a directory or the name of a model on the Hub.
        destination: the directory to create; it may exist if it is empty. It appears when it is complete.

    Returns:
        The converted model and the largest difference of its outputs from the original's, both in float32.

    Raises:
        ConversionError: `source` cannot be found, loaded or converted, or has no tokenizer, or outputs differ by more
            than `TOLERANCE`.
        FileExistsError: `destination` exists and is not an empty directory.
        OSError: `destination` cannot be written.
    """
    destination = new_directory(destination)
    source = find_model(source)
    original = load_original(source)
    model = from_bert(original)
    tokenizer = load_tokenizer(source)
    if len(tokenizer) > model.config.vocab_size:
        raise ConversionError(
            f"{source}: the tokenizer has {len(tokenizer):,} tokens; the model has {model.config.vocab_size:,}"
        )
    longest = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    tokenizer.model_max_length = longest  # tokenizers without a limit would not truncate
    with written_whole(destination) as directory:
        model.save_pretrained(directory)
        save_companions(tokenizer, source, directory)
        batches = _samples(tokenizer, original)
        _compare_tokens(batches, _samples(load_tokenizer(directory), original))
        difference = _compare(original.float(), load_encoder(directory).float(), batches)
    return model, difference


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory.

    Raises:
        ConversionError: there is none, it cannot be loaded, or it cannot pad.
    """
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(directory)
    except Exception as error:  # a broken file can raise almost anything
        raise ConversionError(f"the tokenizer in {directory} cannot be loaded: {error}") from error
    names = _vocabulary(tokenizer)
    if not any((directory / name).is_file() for name in names):  # transformers makes an empty one then
        raise ConversionError(f"{directory} has no tokenizer; it should have {' or '.join(names)}")
    if tokenizer.pad_token is None:
        raise ConversionError(f"the tokenizer in {directory} has no padding token; it should have one")
    return tokenizer


def save_companions(tokenizer: PreTrainedTokenizerBase, source: Path, directory: Path) -> None:
    """Writes the tokenizer and, of a model of sentence-transformers, the modules after its encoder, to `directory`.

    Raises:
        ConversionError: the list of modules in `source` is damaged, or names one that is missing.
    """
    tokenizer.save_pretrained(directory)
    _copy_vocabulary(tokenizer, source, directory)
    _copy_sentence_modules(source, directory)


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The names of files that a tokenizer of this class can have its vocabulary in."""
    return sorted({*tokenizer.vocab_files_names.values(), "tokenizer.json"})


def _copy_vocabulary(tokenizer: PreTrainedTokenizerBase, source: Path, destination: Path) -> None:
    """Copies the files that transformers does not write, because tokenizer.json contains them; other programs may."""
    for name in _vocabulary(tokenizer):
        if (source / name).is_file() and not (destination / name).exists():
            shutil.copyfile(source / name, destination / name)


def _copy_sentence_modules(source: Path, destination: Path) -> None:
    """Copies what a model of sentence-transformers has after its encoder, such as pooling, if it is one."""
    for pattern in SENTENCE_FILES:
        for file in source.glob(pattern):
            shutil.copyfile(file, destination / file.name)
    if not (source / MODULES).is_file():
        return
    try:
        modules = json.loads((source / MODULES).read_text(encoding="utf-8"))
        kinds = {Path(module["path"]): module["type"].rpartition(".")[2] for module in modules}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConversionError(f"{source / MODULES} is not a list of modules with path and type: {error!r}") from error
    for path, kind in kinds.items():
        if path.is_absolute() or ".." in path.parts:
            raise ConversionError(f"{source / MODULES} names {path}; it should be a directory below {source}")
        if path == Path() or (kind in WITHOUT_FILES and not (source / path).exists()):
            continue
        if not (source / path).is_dir():
            raise ConversionError(f"{source / MODULES} names {path}, which is missing")
        shutil.copytree(source / path, destination / path)


def _samples(tokenizer: PreTrainedTokenizerBase, original: PreTrainedModel) -> list[dict[str, Tensor]]:
    """Batches of tokens, `(batch, seq)`: short texts with padding, two segments, and one as long as possible."""
    has_types = getattr(original.config, "type_vocab_size", 0) > 1
    options: dict[str, Any] = {
        "padding": True,
        "padding_side": "right",  # positions of BERT depend on padding on the left
        "truncation": True,
        "max_length": min(tokenizer.model_max_length, LONGEST),
        "return_token_type_ids": has_types,
        "return_attention_mask": True,
        "return_tensors": "pt",
    }
    texts = [(TEXTS,), (TEXTS, TEXTS[::-1]), ([" ".join(TEXTS * 20)],)]
    return [dict(tokenizer(*text, **options)) for text in texts]


def _compare_tokens(expected: list[dict[str, Tensor]], actual: list[dict[str, Tensor]]) -> None:
    for batch, again in zip(expected, actual, strict=True):
        if batch.keys() != again.keys() or not all(torch.equal(batch[name], again[name]) for name in batch):
            raise ConversionError("the tokenizer, saved and loaded, returns other tokens than the original one")


@torch.inference_mode()
def _compare(
    original: PreTrainedModel, model: UltraFastBertPreTrainedModel, batches: list[dict[str, Tensor]]
) -> float:
    """The largest difference of outputs, those of padding excepted.

    Raises:
        ConversionError: it is above the tolerance.
    """
    reference = original.base_model if isinstance(model, UltraFastBertModel) else original
    by_sequence = isinstance(model, UltraFastBertForSequenceClassification | UltraFastBertForMultipleChoice)
    difference = 0.0
    for batch in batches:
        real = batch["attention_mask"].bool()
        if isinstance(model, UltraFastBertForMultipleChoice):
            batch = {name: tensor[None] for name, tensor in batch.items()}  # (1, choices, seq)
        # theirs may have outputs after ours, such as that of a pooler
        for ours, theirs in zip(model(**batch).to_tuple(), reference(**batch).to_tuple(), strict=False):
            if not by_sequence:
                ours, theirs = ours[real], theirs[real]
            found = (ours - theirs).abs().max().item()
            allowed = TOLERANCE * max(1.0, theirs.abs().max().item())
            if not found <= allowed:  # also if it is not a number
                raise ConversionError(
                    f"the outputs of the converted model differ by {found:.1e}; it should be at most {allowed:.1e}"
                )
            difference = max(difference, found)
    return difference
