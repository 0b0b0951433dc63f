"""From text to sequences of tokens, by the steps of cramming (Geiping & Goldstein, arXiv 2212.14034, sec. 4.4).

Reads the text, drops exact duplicates, trains the tokenizer, drops texts that need too many tokens, packs the others
into sequences without padding, and orders the sequences. Notable:
- Memory does not grow with the text, which waits on disk (`Spool`) and is encoded 2 MB at a time.
- Texts are divided into training and validation by a hash, before packing: no sequence holds both.
- The manifest counts everything that is dropped.
"""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from ultrafastbert.pretraining.data.arguments import DataArguments
from ultrafastbert.pretraining.data.frequencies import order_by_prevalence, token_frequencies, unigram_entropy
from ultrafastbert.pretraining.data.packed import (
    FORMAT,
    MANIFEST,
    SPLITS,
    TOKENIZER,
    VERSION,
    DataError,
    compute_fingerprint,
)
from ultrafastbert.pretraining.data.sources import Source
from ultrafastbert.pretraining.data.spool import Spool, in_validation, sampled
from ultrafastbert.pretraining.data.tokenizer import (
    encode,
    load_tokenizer,
    special_token_ids,
    train_tokenizer,
    wrap_tokenizer,
)
from ultrafastbert.utils.files import seal
from ultrafastbert.utils.progress import ProgressLines, progress_bar

Bar = Callable[..., tqdm | ProgressLines]


def build(
    directory: Path,
    arguments: DataArguments,
    sources: list[Source],
    validation: list[Source],
    request: dict,
    progress: bool,
) -> None:
    """Writes the files of prepared data to an empty directory, the manifest last.

    Args:
        directory: of the files.
        arguments: options.
        sources: texts to train on; without `validation`, a fraction of them is held out.
        validation: texts for validation.
        request: for the manifest.
        progress: show it and a summary on stderr.

    Raises:
        DataError: a source is broken, or has too little text for one sequence of each split.
        OSError: the directory cannot be written.
    """
    started = time.monotonic()
    bar = partial(progress_bar, unit="B", unit_scale=True, enabled=progress)
    spool, counts = _read(directory / "spool", arguments, sources, validation, bar)
    if arguments.deduplicate:
        counts["texts_repeated"] = spool.mark_repeated()
    tokenizer = _make_tokenizer(spool, arguments, bar)
    tokenizer.save_pretrained(directory / TOKENIZER)
    special = special_token_ids(tokenizer)
    vocab_size = max(tokenizer.get_vocab().values()) + 1  # the ids of a given tokenizer may have gaps
    dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
    counts |= _pack(directory, spool, tokenizer, dtype, arguments, bar)
    shutil.rmtree(directory / "spool")

    length = arguments.sequence_length
    sequences = {split: counts[f"tokens_{split}"] // length for split in SPLITS}
    _check_sequences(sequences, counts, arguments)
    for split in SPLITS:
        os.truncate(directory / f"{split}.bin", sequences[split] * length * dtype.itemsize)
        counts[f"tokens_left_over_{split}"] = counts[f"tokens_{split}"] % length
    train = np.memmap(directory / "train.bin", dtype, "r", shape=(sequences["train"], length))
    frequencies = token_frequencies(train, vocab_size)
    if arguments.order == "prevalence":
        order_by_prevalence(directory / "train.bin", train, frequencies)

    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": compute_fingerprint(directory),
        "sequence_length": length,
        "vocab_size": vocab_size,
        "dtype": dtype.name,
        "rows": sequences,
        "special_token_ids": special,
        "unigram_entropy": unigram_entropy(frequencies, special),
        "counts": counts,
        "request": request,
    }
    (directory / MANIFEST).write_text(json.dumps(seal(manifest), indent=2) + "\n")
    if progress:
        print(_summary(manifest, time.monotonic() - started), file=sys.stderr)


def _read(
    directory: Path, arguments: DataArguments, sources: list[Source], validation: list[Source], bar: Bar
) -> tuple[Spool, dict[str, int]]:
    """Reads the sources into a spool; texts that are only white space are counted and dropped.

    Validation texts come first, so that of a text in both it is the one for training that is dropped as repeated.
    """
    spool = Spool(directory)
    sizes = [source.size for source in [*validation, *sources]]
    total = None if None in sizes else sum(filter(None, sizes))
    read = characters = empty = 0
    with bar(total, "Reading") as shown:
        for part, most, is_validation in ((validation, None, True), (sources, arguments.max_texts, False)):
            read_before, empty_before = read, empty
            texts = chain.from_iterable(source.texts(directory) for source in part)
            for text, size in islice(texts, most):
                shown.update(size)
                text = text.strip()
                read += 1
                characters += len(text)
                if text:
                    spool.append(text, is_validation)
                else:
                    empty += 1
            if part and read - read_before == empty - empty_before:
                names = ", ".join(source.name for source in part)
                raise DataError(f"no text in {names}: {read - read_before:,} texts were read, all of them empty")
    spool.finish()
    counts = {"texts_read": read, "characters_read": characters, "texts_empty": empty, "texts_repeated": 0}
    return spool, counts


def _make_tokenizer(spool: Spool, arguments: DataArguments, bar: Bar) -> PreTrainedTokenizerFast:
    """Loads the tokenizer that the arguments name, or trains one on an even sample of the training texts."""
    if arguments.tokenizer is not None:
        return load_tokenizer(arguments.tokenizer, arguments.sequence_length)

    def for_training(records: np.ndarray) -> np.ndarray:
        return ~records["repeated"] & ~_held_out(records, arguments)

    available = spool.size(for_training)
    fraction = min(1, arguments.tokenizer_characters / max(available, 1))
    with bar(int(fraction * available), "Training the tokenizer") as shown:

        def batches() -> Iterator[list[str]]:
            for texts, records in spool.batches(lambda records: for_training(records) & sampled(records, fraction)):
                yield texts
                shown.update(int(records["size"].sum()))

        return wrap_tokenizer(train_tokenizer(batches(), arguments.vocab_size), arguments.sequence_length)


def _pack(
    target: Path, spool: Spool, tokenizer: PreTrainedTokenizerFast, dtype: np.dtype, arguments: DataArguments, bar: Bar
) -> dict[str, int]:
    """Writes the tokens of each split as one stream, `[SEP]` after every text; returns the counts."""
    counted = ["texts_without_tokens", "texts_over_ratio", "characters_over_ratio"]
    counted += ["texts_train", "texts_validation", "tokens_train", "tokens_validation"]
    counts = dict.fromkeys(counted, 0)
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True  # "[MASK]" written in a text is ordinary text
    end_of_text = np.array([special_token_ids(tokenizer)["sep"]], dtype)
    limit = arguments.max_tokens_per_character or math.inf
    with (
        (target / "train.bin").open("wb") as train,
        (target / "validation.bin").open("wb") as validation,
        bar(spool.size(_not_repeated), "Tokenizing") as shown,
    ):
        for texts, records in spool.batches(_not_repeated):
            streams: dict[str, list[np.ndarray]] = {split: [np.empty(0, dtype)] for split in SPLITS}
            held_out = _held_out(records, arguments).tolist()
            for text, tokens, hold_out in zip(texts, encode(backend, texts, dtype), held_out, strict=True):
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
                stream = np.concatenate(streams[split])
                file.write(stream.data)
                counts[f"tokens_{split}"] += len(stream)
            shown.update(int(records["size"].sum()))
    return counts


def _held_out(records: np.ndarray, arguments: DataArguments) -> np.ndarray:
    """Which texts are for validation, `(n,)` bool."""
    if arguments.validation_source is not None:
        return records["validation"]
    return in_validation(records, arguments.validation_fraction)


def _not_repeated(records: np.ndarray) -> np.ndarray:
    return ~records["repeated"]


def _check_sequences(sequences: dict[str, int], counts: dict[str, int], arguments: DataArguments) -> None:
    more = "in validation_source" if arguments.validation_source is not None else "or raise validation_fraction"
    remedies = {"training": "give more text", "validation": f"give more text {more}"}
    for split, (name, remedy) in zip(SPLITS, remedies.items(), strict=True):
        if not sequences[split]:
            lack = f"too little text for one {name} sequence of {arguments.sequence_length} tokens"
            raise DataError(f"{lack}: {remedy}. {_texts_summary(counts)}")


def _summary(manifest: dict, seconds: float) -> str:
    counts, sequences = manifest["counts"], manifest["rows"]
    millions = counts["characters_read"] / 1e6
    lines = [
        _texts_summary(counts),
        f"{sequences['train']:,} training and {sequences['validation']:,} validation sequences of "
        f"{manifest['sequence_length']} tokens, vocabulary of {manifest['vocab_size']:,}, "
        f"unigram entropy {manifest['unigram_entropy']:.3f} nats per token",
        f"{millions:,.1f} million characters in {seconds:.0f} s: {millions / seconds:.1f} million characters/s",
    ]
    asked = manifest["request"]["options"]["vocab_size"]
    if manifest["request"]["tokenizer"] is None and manifest["vocab_size"] < asked:
        lines.append(f"The text is too small for {asked:,} tokens: the vocabulary has {manifest['vocab_size']:,}")
    if counts["characters_over_ratio"] > 0.3 * counts["characters_read"]:
        remedy = "consider a higher max_tokens_per_character"
        lines.append(f"More than 30 % of the text had too many tokens per character: {remedy}")
    return "\n".join(lines)


def _texts_summary(counts: dict[str, int]) -> str:
    dropped = {
        "empty": counts["texts_empty"],
        "without typeable characters": counts["texts_without_tokens"],
        "repeated": counts["texts_repeated"],
        "with too many tokens per character": counts["texts_over_ratio"],
    }
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in dropped.items() if number)
    return (
        f"Of {counts['texts_read']:,} texts, {counts['texts_train']:,} are for training and "
        f"{counts['texts_validation']:,} for validation; dropped: {reasons or 'none'}"
    )
