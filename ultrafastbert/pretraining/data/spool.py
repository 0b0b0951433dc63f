"""Texts on disk between reading and packing.

A source is read only once, because a stream cannot be read twice and a compressed file only slowly. Its texts go to
one file of UTF-8, and a record of fixed size for each text to another. Notable:
- Memory does not grow with the text: exact duplicates are found in one part of the digests after the other.
- A text's digest also decides its split and its place in samples. Neither depends on the order of texts.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

RECORD = np.dtype([("digest", "<u8", 2), ("size", "<u8"), ("repeated", "?"), ("validation", "?")])  # 26 bytes
RECORDS_AT_A_TIME = 1 << 16
DIGESTS_AT_A_TIME = 1 << 22  # sorting these takes about 200 MB
BATCH_BYTES = 1 << 21

Selection = Callable[[np.ndarray], np.ndarray]
"""From records `(n,)` of dtype RECORD to a bool mask `(n,)`."""


class Spool:
    """An append-only list of texts in a directory. `finish` ends the appending and opens it for reading."""

    def __init__(self, directory: Path):
        directory.mkdir()
        self._text_path, self._record_path = directory / "texts", directory / "records"
        self._texts, self._records = self._text_path.open("wb"), self._record_path.open("wb")
        self.records = np.empty(0, RECORD)

    def append(self, text: str, validation: bool = False) -> None:
        """Adds a text, of a validation source or not. Half surrogate pairs, which tokenizers refuse, are dropped."""
        encoded = text.encode("utf-8", "ignore")
        digest = hashlib.blake2b(encoded, digest_size=16).digest()
        self._texts.write(encoded)
        self._records.write(digest + len(encoded).to_bytes(8, "little") + bytes([False, validation]))

    def finish(self) -> None:
        """Closes the files and maps the records, `(texts,)` of dtype RECORD, for reading and marking."""
        self._texts.close()
        self._records.close()
        if self._record_path.stat().st_size:  # an empty file cannot be mapped
            self.records = np.memmap(self._record_path, RECORD, mode="r+")

    def mark_repeated(self, digests_at_a_time: int = DIGESTS_AT_A_TIME) -> int:
        """Marks every text that equals an earlier one, by 128-bit BLAKE2b digest; returns their number."""
        parts = -(-len(self.records) // digests_at_a_time)
        total = 0
        for part in range(parts):
            in_part = [
                start + np.flatnonzero(chunk["digest"][:, 0] % np.uint64(parts) == part)
                for start, chunk in _chunks(self.records)
            ]
            positions = np.concatenate(in_part)
            digests = self.records["digest"][positions]
            order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: equal digests stay in the order of texts
            repeats = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
            self.records["repeated"][positions[order[1:][repeats]]] = True
            total += int(repeats.sum())
        return total

    def size(self, select: Selection) -> int:
        """Bytes of the selected texts."""
        return sum(int(chunk["size"][select(chunk)].sum()) for _, chunk in _chunks(self.records))

    def batches(self, select: Selection) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yields the selected texts in order, about 2 MB at a time, with their records."""
        with self._text_path.open("rb") as file:
            for _, chunk in _chunks(self.records):
                texts: list[str] = []
                chosen: list[int] = []
                size_of_batch = 0
                selected = select(chunk).tolist()
                for index, size in enumerate(chunk["size"].tolist()):
                    if not selected[index]:
                        file.seek(size, os.SEEK_CUR)
                        continue
                    texts.append(file.read(size).decode())
                    chosen.append(index)
                    size_of_batch += size
                    if size_of_batch >= BATCH_BYTES:
                        yield texts, chunk[chosen]
                        texts, chosen, size_of_batch = [], [], 0
                if texts:
                    yield texts, chunk[chosen]


def _chunks(records: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(records), RECORDS_AT_A_TIME):
        yield start, records[start : start + RECORDS_AT_A_TIME]


def in_validation(records: np.ndarray, fraction: float) -> np.ndarray:
    """Which texts are held out, `(n,)` bool; by the second half of the digest, as `sampled` uses the first."""
    return _below(records["digest"][:, 1], fraction)


def sampled(records: np.ndarray, fraction: float) -> np.ndarray:
    """An even sample of about this fraction of the texts: `(n,)` bool."""
    return _below(records["digest"][:, 0], fraction)


def _below(values: np.ndarray, fraction: float) -> np.ndarray:
    return values <= np.uint64(min(fraction, 1.0) * (2**64 - 2**11))  # 2**64 - 2**11 is the last float below 2**64
