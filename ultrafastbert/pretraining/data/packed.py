"""Prepared data on disk: sequences of tokens, their tokenizer, and a manifest.

    DIRECTORY/
      manifest.json      sources, options, counts, shapes; written last
      train.bin          (sequences, sequence_length) token ids, little-endian uint16 or uint32
      validation.bin     the same, of other texts
      tokenizer/         for `transformers.AutoTokenizer.from_pretrained`

Notable: reading needs only numpy and the standard library, so a machine without `datasets` or `tokenizers` can train
on data prepared elsewhere. Files are memory-mapped, never loaded.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ultrafastbert.utils.errors import UserError

FORMAT = "ultrafastbert tokens"
VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
SPLITS = ("train", "validation")
ATTRIBUTES = {"fingerprint", "sequence_length", "vocab_size", "special_token_ids", "unigram_entropy"}
FIELDS = ATTRIBUTES | {"dtype", "rows", "request"}
"""Keys that a manifest must have. `rows` are the sequences of each split; the key `counts` is only for people."""

_REMEDY = "remove the directory and prepare the data again"


class DataError(UserError, ValueError):
    """Text or prepared data that cannot be used. The message names the file, and the line if there is one."""


@dataclass(frozen=True, eq=False)
class PackedData:
    """Sequences of tokens, opened by `open_packed`.

    Attributes:
        directory: of the files.
        manifest: contents of `manifest.json`.
        train: `(sequences, sequence_length)` uint16, or uint32 for vocabularies above 65,536; a read-only memory map.
        validation: the same, of held-out texts.
        sequence_length: number of tokens in a sequence.
        vocab_size: number of tokens in the vocabulary, special ones included.
        fingerprint: SHA-256 (hex) of the token files and `tokenizer.json`; it does not depend on where the data is.
        unigram_entropy: of the training tokens without special tokens, in nats per token: the loss of a model that
            knows only how often each token occurs.
        special_token_ids: ids of `pad` (always 0), `unk`, `cls`, `sep` and `mask`.
    """

    directory: Path
    manifest: dict
    train: np.ndarray
    validation: np.ndarray
    sequence_length: int
    vocab_size: int
    fingerprint: str
    unigram_entropy: float
    special_token_ids: dict[str, int]

    @property
    def tokenizer_directory(self) -> Path:
        """Directory for `transformers.AutoTokenizer.from_pretrained`."""
        return self.directory / TOKENIZER


def open_packed(directory: str | Path) -> PackedData:
    """Opens prepared data.

    Raises:
        DataError: the directory does not exist, holds no finished preparation or one of an unknown format version, or
            the sizes of its files differ from the manifest.
    """
    directory = Path(directory)
    manifest = _read_manifest(directory)
    splits = {split: _map_split(directory / f"{split}.bin", manifest, split) for split in SPLITS}
    if not (directory / TOKENIZER / "tokenizer.json").is_file():
        raise DataError(f"{directory / TOKENIZER} holds no tokenizer.json: {_REMEDY}")
    return PackedData(directory, manifest, **splits, **{field: manifest[field] for field in ATTRIBUTES})


def _map_split(path: Path, manifest: dict, split: str) -> np.ndarray:
    dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
    shape = (manifest["rows"][split], manifest["sequence_length"])
    expected = shape[0] * shape[1] * dtype.itemsize
    size = path.stat().st_size if path.is_file() else None
    if size != expected:
        found = "is missing" if size is None else f"has {size:,} bytes"
        raise DataError(f"{path} {found}; by its manifest it should have {expected:,}: {_REMEDY}")
    return np.memmap(path, dtype=dtype, mode="r", shape=shape)


def _read_manifest(directory: Path) -> dict:
    path = directory / MANIFEST
    if not directory.is_dir():
        raise DataError(f"{directory} is not a directory")
    if not path.is_file():
        raise DataError(f"{directory} holds no {MANIFEST}: it is not prepared data, or its preparation did not finish")
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path} is not the manifest of prepared data: its format should be {FORMAT!r}")
    if (version := manifest.get("version")) != VERSION:
        known = f"this program reads version {VERSION}"
        raise DataError(f"{path} has format version {version}; {known}: prepare the data again")
    if missing := FIELDS - manifest.keys():
        raise DataError(f"{path} lacks {', '.join(sorted(missing))}: {_REMEDY}")
    return manifest
