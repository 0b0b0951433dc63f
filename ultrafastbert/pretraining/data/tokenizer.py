"""The tokenizer: WordPiece as in cramming (Geiping & Goldstein, arXiv 2212.14034, sec. 4.4).

Text is reduced to lower-case characters that can be typed on an American keyboard. The tokenizer's normalizer does
this, so that text is treated alike in training and afterwards. Notable:
- Typographic quotes, dashes and ligatures become what people type for them. Accents and all other characters are
  dropped.
- Training is deterministic, which `tokenizers` alone is not: see `train_tokenizer`.
- Every typeable character is a token, so only words of more than 100 characters become [UNK].
"""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ultrafastbert.pretraining.data.packed import DataError

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
TYPEABLE = [chr(code) for code in range(ord("!"), ord("~") + 1) if not chr(code).isupper()]

TYPED = {"‘": "'", "’": "'", "“": '"', "”": '"', "‐": "-", "–": "-", "—": "--", "−": "-", "⁄": "/"}
TYPED |= {"æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "ß": "ss"}
"""What people type for characters that compatibility decomposition (NFKD) leaves untypeable."""

MAX_CHARACTERS = 10_000
"""Longer texts are processed in pieces: a piece occupies one core, and takes some 100 bytes per character."""
PIECES_AT_A_TIME = 512


def normalizer() -> normalizers.Normalizer:
    """Lower-cased typeable characters and white space."""
    steps = [normalizers.NFKD(), normalizers.Lowercase()]  # accents become characters, which the last step drops
    steps += [normalizers.Replace(character, typed) for character, typed in TYPED.items()]
    return normalizers.Sequence([*steps, normalizers.Replace(Regex(r"[^\s!-~]+"), "")])


def train_tokenizer(batches: Iterable[list[str]], vocab_size: int) -> Tokenizer:
    """Trains WordPiece on batches of texts.

    The trainer numbers continuations of words ("##a") in the order of a hash map, which differs from run to run,
    and settles ties between merges by number (huggingface/tokenizers issue 1794). Passing all of them to it, in a
    fixed order, makes the vocabulary a function of the text.
    """
    tokenizer = _tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS["unk"]))
    fixed = [*SPECIAL_TOKENS.values(), *TYPEABLE, *(f"##{character}" for character in TYPEABLE)]
    options: dict[str, Any] = {"min_frequency": 2, "special_tokens": fixed, "show_progress": False}
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, **options)
    stopped = threading.Event()

    def pieces() -> Iterator[list[str]]:
        for texts in batches:
            if stopped.is_set():
                raise RuntimeError("training was interrupted")
            yield [piece for text in texts for piece in split_at_spaces(text, MAX_CHARACTERS)]

    with ThreadPoolExecutor(1) as pool:  # training ignores Ctrl-C in its thread, but this thread can be interrupted
        try:
            pool.submit(tokenizer.train_from_iterator, pieces(), trainer).result()
        finally:
            stopped.set()
    # A new tokenizer, because in the trained one the letters passed above are special tokens, which are never split.
    model = models.WordPiece(tokenizer.get_vocab(), unk_token=SPECIAL_TOKENS["unk"], max_input_chars_per_word=100)
    return _tokenizer(model)


def _tokenizer(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def wrap_tokenizer(tokenizer: Tokenizer, sequence_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer for use with `transformers`: `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`."""
    ids = tokenizer.get_vocab()
    sep, cls = SPECIAL_TOKENS["sep"], SPECIAL_TOKENS["cls"]
    tokenizer.post_processor = processors.BertProcessing((sep, ids[sep]), (cls, ids[cls]))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=sequence_length,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in SPECIAL_TOKENS.items()},
    )


def load_tokenizer(name: str, sequence_length: int) -> PreTrainedTokenizerFast:
    """Loads an existing tokenizer by directory or Hub name.

    Raises:
        DataError: it cannot be loaded, has no Rust implementation, lacks a special token, or its padding id is not 0.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # whatever transformers, tokenizers and the Hub raise
        raise DataError(f"tokenizer {name} could not be loaded: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        kind = type(tokenizer).__name__
        raise DataError(f"tokenizer {name} is a {kind}; it should be a fast one, of the `tokenizers` library")
    missing = [special for special in SPECIAL_TOKENS if getattr(tokenizer, f"{special}_token_id") is None]
    if missing:
        raise DataError(f"tokenizer {name} has no {', '.join(missing)} token")
    if tokenizer.pad_token_id != 0:
        raise DataError(f"tokenizer {name} pads with id {tokenizer.pad_token_id}; the model needs 0")
    tokenizer.backend_tokenizer.no_truncation()  # some are saved with it, which would cut every text short
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.model_max_length = sequence_length
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def special_token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Ids of `pad`, `unk`, `cls`, `sep` and `mask`."""
    return {name: getattr(tokenizer, f"{name}_token_id") for name in SPECIAL_TOKENS}


def encode(tokenizer: Tokenizer, texts: list[str], dtype: np.dtype) -> list[np.ndarray]:
    """Token ids of each text, `(tokens,)` of `dtype`, without special tokens; uses all cores."""
    pieces = [(index, piece) for index, text in enumerate(texts) for piece in split_at_spaces(text, MAX_CHARACTERS)]
    tokens: list[list[np.ndarray]] = [[] for _ in texts]
    for start in range(0, len(pieces), PIECES_AT_A_TIME):
        group = pieces[start : start + PIECES_AT_A_TIME]
        encodings = tokenizer.encode_batch_fast([piece for _, piece in group], add_special_tokens=False)
        for (index, _), encoding in zip(group, encodings, strict=True):
            tokens[index].append(np.array(encoding.ids, dtype))
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
