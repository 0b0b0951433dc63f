"""Prepared data on disk: sequences of tokens, their tokenizer, and a manifest.

    DIRECTORY/
      manifest.json      sources, options, counts, shapes; written last
      train.bin          (sequences, sequence_length) token ids, little-endian uint16 or uint32
      validation.bin     the same, of other texts
      tokenizer/         for `transformers.AutoTokenizer.from_pretrained`

Notable: reading needs only numpy and the standard library, so a machine without `datasets` or `tokenizers` can train
on data prepared elsewhere. Files are memory-mapped, never loaded. When data is opened for the first time, its files
are compared to the fingerprint in the manifest; `.verified` remembers sizes, times and inodes of the files, so that
they are read again only if they have changed.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import hash_file, is_intact, write_atomically

FORMAT = "ultrafastbert tokens"
VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
SPLITS = ("train", "validation")
VERIFIED = ".verified"
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
            its files differ from the manifest.
    """
    directory = Path(directory)
    manifest = _read_manifest(directory)
    splits = {split: _map_split(directory / f"{split}.bin", manifest, split) for split in SPLITS}
    if not (directory / TOKENIZER / "tokenizer.json").is_file():
        raise DataError(f"{directory / TOKENIZER} holds no tokenizer.json: {_REMEDY}")
    _verify(directory, manifest["fingerprint"])
    return PackedData(directory, manifest, **splits, **{field: manifest[field] for field in ATTRIBUTES})


def compute_fingerprint(directory: Path) -> str:
    """SHA-256 of the SHA-256 digests of the token files and of `tokenizer.json`."""
    with ThreadPoolExecutor() as pool:
        digests = pool.map(hash_file, _hashed_files(directory))
        return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def _hashed_files(directory: Path) -> list[Path]:
    return [*(directory / f"{split}.bin" for split in SPLITS), directory / TOKENIZER / "tokenizer.json"]


def _verify(directory: Path, fingerprint: str) -> None:
    """Compares the files to the fingerprint, unless they have not changed since this was done."""
    record = directory / VERIFIED
    states = [path.stat() for path in _hashed_files(directory)]
    state = json.dumps([fingerprint, *([s.st_size, s.st_mtime_ns, s.st_ino] for s in states)])
    with suppress(OSError, ValueError):
        if record.read_text(encoding="utf-8") == state:
            return
    if compute_fingerprint(directory) != fingerprint:
        raise DataError(
            f"{directory} is damaged: train.bin, validation.bin, tokenizer.json or the fingerprint in {MANIFEST}"
            f" changed since the data was prepared: {_REMEDY}"
        )
    with suppress(OSError):  # in a directory that cannot be written, this is done every time
        write_atomically(record, state)


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
    if not is_intact(manifest):
        raise DataError(f"{path} changed since the data was prepared: {_REMEDY}")
    _check_fields(manifest, path)
    return manifest


def _check_fields(manifest: dict, path: Path) -> None:
    """Checks the types of what the program reads, which a manifest of version 0.1 does not protect by a checksum."""
    rows, special, request = manifest["rows"], manifest["special_token_ids"], manifest["request"]
    entropy, vocab_size = manifest["unigram_entropy"], manifest["vocab_size"]
    sizes = [manifest["sequence_length"], vocab_size, *(rows.values() if isinstance(rows, dict) else [None])]
    right = {
        "sequence_length, vocab_size or rows": all(type(size) is int and size > 0 for size in sizes),
        "rows": isinstance(rows, dict) and set(SPLITS) <= rows.keys(),
        "dtype": manifest["dtype"] in ("uint16", "uint32"),
        "special_token_ids": isinstance(special, dict)
        and {"pad", "mask"} <= special.keys()
        and all(type(id) is int and type(vocab_size) is int and 0 <= id < vocab_size for id in special.values()),
        "unigram_entropy": isinstance(entropy, int | float) and 0 <= entropy < 1e3,
        "request": isinstance(request, dict)
        and isinstance(request.get("options"), dict)
        and request["options"].get("order") in ("source", "prevalence"),
    }
    if wrong := [name for name, is_right in right.items() if not is_right]:
        raise DataError(f"{path} has a wrong value of {', '.join(wrong)}: {_REMEDY}")


def check_ids(ids: np.ndarray, vocab_size: int, where: object) -> None:
    """Raises a DataError if any token id is not in the vocabulary."""
    if ids.size and (most := int(ids.max())) >= vocab_size:
        raise DataError(
            f"{where} has the token id {most}; all should be below {vocab_size}, its vocabulary: {_REMEDY}"
        )
