"""Text to rows of tokens, by the steps of cramming (Geiping & Goldstein, arXiv 2212.14034, sec. 4.4).

Read, drop exact duplicates, train the tokenizer, drop texts that tokenise badly, pack into rows without
padding, put the rows in order. Notable:
- Memory does not grow with the text, which waits on disk (`Spool`) and is encoded 2 MB at a time.
- Training and validation texts part by a hash of the text, before packing: no row holds both.
- Whatever is dropped is counted in the manifest.
"""

import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from ultrafastbert.pretraining.data.arguments import DataArguments
from ultrafastbert.pretraining.data.packed import FORMAT, MANIFEST, SPLITS, TOKENIZER, VERSION, DataError
from ultrafastbert.pretraining.data.sources import Source
from ultrafastbert.pretraining.data.spool import Spool, in_validation, sampled
from ultrafastbert.pretraining.data.tokenizer import load_tokenizer, special_token_ids, train_tokenizer, wrap_tokenizer

MAX_CHARACTERS = 10_000
"""A longer text is tokenised in pieces: a piece is the work of one core, and takes some 100 bytes a character."""
PIECES_AT_A_TIME = 512
ROWS_AT_A_TIME = 1 << 14


def build(directory: Path, arguments: DataArguments, sources: list[Source], request: dict, progress: bool) -> None:
    """Makes the files of prepared data in an empty directory; the manifest comes last.

    Raises:
        DataError: if a source is broken, or leaves not one row for training and one for validation.
        OSError: if the directory cannot be written.
    """
    started = time.monotonic()
    bar = partial(tqdm, disable=not progress, unit="B", unit_scale=True, dynamic_ncols=True)
    spool, counts = _read(directory / "spool", arguments, sources, bar)
    if arguments.deduplicate:
        counts["texts_repeated"] = spool.mark_repeated()
    tokenizer = _tokenizer(spool, arguments, bar)
    tokenizer.save_pretrained(directory / TOKENIZER)
    special = special_token_ids(tokenizer)
    vocab_size = max(tokenizer.get_vocab().values()) + 1  # the vocabulary of a given tokenizer may have gaps
    dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
    counts |= _pack(directory, spool, tokenizer.backend_tokenizer, special["sep"], dtype, arguments, bar)
    shutil.rmtree(directory / "spool")

    rows = {split: counts[f"tokens_{split}"] // arguments.sequence_length for split in SPLITS}
    _check_rows(rows, counts, arguments)
    for split in SPLITS:
        os.truncate(directory / f"{split}.bin", rows[split] * arguments.sequence_length * dtype.itemsize)
        counts[f"tokens_left_over_{split}"] = counts[f"tokens_{split}"] % arguments.sequence_length
    train = np.memmap(directory / "train.bin", dtype, "r", shape=(rows["train"], arguments.sequence_length))
    frequencies = token_frequencies(train, vocab_size)
    if arguments.order == "prevalence":
        _order_by_prevalence(directory / "train.bin", train, frequencies)

    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": _fingerprint(directory),
        "sequence_length": arguments.sequence_length,
        "vocab_size": vocab_size,
        "dtype": dtype.name,
        "rows": rows,
        "special_token_ids": special,
        "unigram_entropy": unigram_entropy(frequencies, special),
        "counts": counts,
        "request": request,
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    if progress:
        print(_summary(manifest, time.monotonic() - started), file=sys.stderr)


def _read(
    directory: Path, arguments: DataArguments, sources: list[Source], bar: Callable[..., tqdm]
) -> tuple[Spool, dict[str, int]]:
    """Reads the sources into a spool; texts of nothing but white space are counted and left out."""
    spool = Spool(directory)
    sizes = [source.size for source in sources]
    total = None if None in sizes else sum(sizes)
    texts = chain.from_iterable(source.texts(directory) for source in sources)
    read = characters = empty = 0
    with bar(desc="Reading", total=total) as shown:
        for text, size in islice(texts, arguments.max_texts):
            shown.update(size)
            text = text.strip()
            read += 1
            characters += len(text)
            if text:
                spool.append(text)
            else:
                empty += 1
    spool.finish()
    if read == empty:
        names = ", ".join(source.name for source in sources)
        raise DataError(f"no text in {names}: {read:,} texts were read, all of them empty")
    return spool, {
        "texts_read": read,
        "characters_read": characters,
        "texts_empty": empty,
        "texts_repeated": 0,
    }


def _tokenizer(spool: Spool, arguments: DataArguments, bar: Callable[..., tqdm]) -> PreTrainedTokenizerFast:
    """Trains a tokenizer on an even sample of the training texts, or loads the one that is asked for."""
    if arguments.tokenizer is not None:
        return load_tokenizer(arguments.tokenizer, arguments.sequence_length)

    def for_training(records: np.ndarray) -> np.ndarray:
        return ~records["repeated"] & ~in_validation(records, arguments.validation_fraction)

    available = spool.size(for_training)
    share = arguments.tokenizer_characters / max(available, 1)
    with bar(desc="Training the tokenizer", total=int(min(share, 1) * available)) as shown:

        def batches() -> Iterator[list[str]]:
            for texts, records in spool.batches(lambda records: for_training(records) & sampled(records, share)):
                yield [piece for text in texts for piece in split_at_spaces(text, MAX_CHARACTERS)]
                shown.update(int(records["size"].sum()))

        return wrap_tokenizer(train_tokenizer(batches(), arguments.vocab_size), arguments.sequence_length)


def _pack(
    directory: Path,
    spool: Spool,
    tokenizer: Tokenizer,
    separator: int,
    dtype: np.dtype,
    arguments: DataArguments,
    bar: Callable[..., tqdm],
) -> dict[str, int]:
    """Writes the tokens of each split as one stream, `separator` after every text; returns the counts."""
    counts: Counter[str] = Counter()
    tokenizer.encode_special_tokens = True  # "[MASK]" in a text is five letters and two brackets
    end_of_text = np.array([separator], dtype)
    limit = arguments.max_tokens_per_character or math.inf
    with (
        (directory / "train.bin").open("wb") as train,
        (directory / "validation.bin").open("wb") as validation,
        bar(desc="Tokenising", total=spool.size(_not_repeated)) as shown,
    ):
        for texts, records in spool.batches(_not_repeated):
            streams: dict[str, list[np.ndarray]] = {split: [np.empty(0, dtype)] for split in SPLITS}
            held_out = in_validation(records, arguments.validation_fraction).tolist()
            for text, tokens, hold_out in zip(texts, encode(tokenizer, texts, dtype), held_out, strict=True):
                if not len(tokens):
                    counts["texts_without_tokens"] += 1
                elif len(tokens) > limit * len(text):
                    counts["texts_over_ratio"] += 1
                    counts["characters_over_ratio"] += len(text)
                else:
                    split = "validation" if hold_out else "train"
                    counts[f"texts_{split}"] += 1
                    streams[split] += (tokens, end_of_text)
            for split, file in (("train", train), ("validation", validation)):
                tokens = np.concatenate(streams[split])
                file.write(tokens)
                counts[f"tokens_{split}"] += len(tokens)
            shown.update(int(records["size"].sum()))
    dropped = ("texts_without_tokens", "texts_over_ratio", "characters_over_ratio")
    kept = ("texts_train", "texts_validation", "tokens_train", "tokens_validation")
    return {key: counts[key] for key in dropped + kept}


def _not_repeated(records: np.ndarray) -> np.ndarray:
    return ~records["repeated"]


def encode(tokenizer: Tokenizer, texts: list[str], dtype: np.dtype) -> list[np.ndarray]:
    """Token ids of each text, `(tokens,)` of the dtype, without special tokens; on all cores."""
    pieces = [(i, piece) for i, text in enumerate(texts) for piece in split_at_spaces(text, MAX_CHARACTERS)]
    tokens: list[list[np.ndarray]] = [[] for _ in texts]
    for start in range(0, len(pieces), PIECES_AT_A_TIME):
        group = pieces[start : start + PIECES_AT_A_TIME]
        encodings = tokenizer.encode_batch_fast([piece for _, piece in group], add_special_tokens=False)
        for (i, _), encoding in zip(group, encodings, strict=True):
            tokens[i].append(np.array(encoding.ids, dtype))
    return [np.concatenate(parts) for parts in tokens]


def split_at_spaces(text: str, size: int) -> list[str]:
    """Pieces of at most `size` characters that together are the text, cut before a space if there is one."""
    pieces = []
    start = 0
    while len(text) - start > size:
        space = text.rfind(" ", start + 1, start + size + 1)
        end = space if space > 0 else start + size
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def _check_rows(rows: dict[str, int], counts: dict[str, int], arguments: DataArguments) -> None:
    for split, remedy in (
        ("train", "give more text"),
        ("validation", "give more text or raise validation_fraction"),
    ):
        if not rows[split]:
            raise DataError(
                f"too little text for one row of {arguments.sequence_length} {split} tokens: {remedy}. "
                f"{_texts_summary(counts)}"
            )


def token_frequencies(rows: np.ndarray, vocab_size: int) -> np.ndarray:
    """How often each token occurs in `(rows, sequence_length)` ids: `(vocab_size,)` int64."""
    frequencies = np.zeros(vocab_size, np.int64)
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        frequencies += np.bincount(rows[start : start + ROWS_AT_A_TIME].ravel(), minlength=vocab_size)
    return frequencies


def unigram_entropy(frequencies: np.ndarray, special_token_ids: dict[str, int]) -> float:
    """Entropy in nats per token of the distribution that `(vocab_size,)` counts give, without special tokens."""
    counts = np.delete(frequencies, list(special_token_ids.values()))
    probabilities = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(probabilities * np.log(probabilities)).sum())


def prevalence(rows: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Mean log-frequency of each row's tokens: `(rows,)` float32, in nats, higher for more common tokens."""
    log_frequencies = np.log(np.maximum(frequencies, 1) / frequencies.sum())
    scores = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        scores[start : start + ROWS_AT_A_TIME] = log_frequencies[rows[start : start + ROWS_AT_A_TIME]].mean(axis=1)
    return scores


def _order_by_prevalence(path: Path, rows: np.ndarray, frequencies: np.ndarray) -> None:
    """Rewrites the file with the rows of common tokens first. Holds 12 bytes a row in memory."""
    order = np.argsort(-prevalence(rows, frequencies), kind="stable")
    ordered = path.with_suffix(".ordered")
    with ordered.open("wb") as file:
        for start in range(0, len(order), ROWS_AT_A_TIME):
            file.write(rows[order[start : start + ROWS_AT_A_TIME]])
    ordered.replace(path)


def _fingerprint(directory: Path) -> str:
    """SHA-256 of the token files and of `tokenizer.json`, one after the other."""
    digest = hashlib.sha256()
    for path in (*(directory / f"{split}.bin" for split in SPLITS), directory / TOKENIZER / "tokenizer.json"):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _summary(manifest: dict, seconds: float) -> str:
    counts, rows = manifest["counts"], manifest["rows"]
    megabytes = counts["characters_read"] / 1e6
    lines = [
        _texts_summary(counts),
        f"{rows['train']:,} training rows and {rows['validation']:,} validation rows of "
        f"{manifest['sequence_length']} tokens, vocabulary of {manifest['vocab_size']:,}, "
        f"unigram entropy {manifest['unigram_entropy']:.3f} nats per token",
        f"{megabytes:,.1f} million characters in {seconds:.0f} s: {megabytes / seconds:.1f} million characters/s",
    ]
    asked = manifest["request"]["options"]["vocab_size"]
    if manifest["request"]["tokenizer"] is None and manifest["vocab_size"] < asked:
        lines.append(f"The text is too small for a vocabulary of {asked:,}: it has {manifest['vocab_size']:,} tokens")
    if counts["characters_over_ratio"] > 0.3 * counts["characters_read"]:
        lines.append("More than 30 % of the text had too many tokens for its characters: see max_tokens_per_character")
    return "\n".join(lines)


def _texts_summary(counts: dict[str, int]) -> str:
    dropped = {
        "empty": counts["texts_empty"],
        "without typeable characters": counts["texts_without_tokens"],
        "repeated": counts["texts_repeated"],
        "with too many tokens for their characters": counts["texts_over_ratio"],
    }
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in dropped.items() if number)
    return (
        f"Of {counts['texts_read']:,} texts, {counts['texts_train']:,} are for training, "
        f"{counts['texts_validation']:,} for validation; dropped: {reasons or 'none'}"
    )
