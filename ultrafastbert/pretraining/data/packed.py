"""Prepared data on disk: rows of tokens, their tokenizer, and a manifest.

    DIRECTORY/
      manifest.json      what it was made from, how, counts, shapes; written last
      train.bin          (rows, sequence_length) token ids, little-endian uint16 or uint32, row after row
      validation.bin     the same, of other texts
      tokenizer/         for `transformers.AutoTokenizer.from_pretrained`

Notable: reading needs numpy and the standard library only, so that a machine without `datasets` or
`tokenizers` trains on data prepared elsewhere; files are memory-mapped, never loaded.
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
FIELDS = {
    "fingerprint",
    "sequence_length",
    "vocab_size",
    "dtype",
    "rows",
    "special_token_ids",
    "unigram_entropy",
    "request",
}
"""What a manifest must have; `counts` is for people."""


_ANEW = "remove the directory and prepare the data again"


class DataError(UserError, ValueError):
    """Text or prepared data that cannot be used; the message names the file, and the line if there is one."""


@dataclass(frozen=True, eq=False)
class PackedData:
    """Rows of tokens, as `open_packed` finds them.

    Attributes:
        directory: where the files are.
        manifest: contents of `manifest.json`.
        train: `(rows, sequence_length)` uint16, or uint32 for vocabularies above 65,536; read-only memory
            map.
        validation: the same, of texts held out.
    """

    directory: Path
    manifest: dict
    train: np.ndarray
    validation: np.ndarray

    @property
    def sequence_length(self) -> int:
        """Tokens in a row."""
        return self.manifest["sequence_length"]

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary, special ones included."""
        return self.manifest["vocab_size"]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the token files and `tokenizer.json`: the same wherever the data is."""
        return self.manifest["fingerprint"]

    @property
    def unigram_entropy(self) -> float:
        """Entropy of the training tokens without special tokens, in nats per token.

        The loss of a model that knows how often each token occurs and nothing else.
        """
        return self.manifest["unigram_entropy"]

    @property
    def special_token_ids(self) -> dict[str, int]:
        """Ids of `pad` (always 0), `unk`, `cls`, `sep` and `mask`."""
        return self.manifest["special_token_ids"]

    @property
    def tokenizer_directory(self) -> Path:
        """Directory for `transformers.AutoTokenizer.from_pretrained`."""
        return self.directory / TOKENIZER


def open_packed(directory: str | Path) -> PackedData:
    """Opens prepared data.

    Raises:
        DataError: if the directory does not exist, holds no finished preparation, one of a format this
            version does not know, or files whose sizes are not those in the manifest.
    """
    directory = Path(directory)
    manifest = _read_manifest(directory)
    rows = {split: _map_rows(directory / f"{split}.bin", manifest, split) for split in SPLITS}
    if not (directory / TOKENIZER / "tokenizer.json").is_file():
        raise DataError(f"{directory / TOKENIZER} holds no tokenizer.json: {_ANEW}")
    return PackedData(directory, manifest, **rows)


def _map_rows(path: Path, manifest: dict, split: str) -> np.ndarray:
    dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
    shape = (manifest["rows"][split], manifest["sequence_length"])
    expected = shape[0] * shape[1] * dtype.itemsize
    size = path.stat().st_size if path.is_file() else None
    if size != expected:
        found = "is missing" if size is None else f"has {size:,} bytes"
        raise DataError(f"{path} {found}, by its manifest it should have {expected:,}: {_ANEW}")
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
    if manifest.get("version") != VERSION:
        raise DataError(
            f"{path} has format version {manifest.get('version')}, this program reads version {VERSION}: "
            "prepare the data again"
        )
    if missing := FIELDS - manifest.keys():
        raise DataError(f"{path} lacks {', '.join(sorted(missing))}: {_ANEW}")
    return manifest
