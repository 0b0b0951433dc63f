"""The tokenizer: cramming's WordPiece (Geiping & Goldstein, arXiv 2212.14034, sec. 4.4).

Text is reduced to what an American keyboard can type, in lower case. This is the tokenizer's own normalizer,
so that text meets it in training and in use alike. Notable:
- Typographic quotes, dashes and ligatures become what people type for them; accents go; all other characters
  are dropped.
- Training is deterministic, which `tokenizers` alone is not: see `train_tokenizer`.
- Every typeable character is a token, so that only words of more than 100 characters become [UNK].
"""

from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ultrafastbert.pretraining.data.packed import DataError

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
TYPEABLE = [chr(code) for code in range(ord("!"), ord("~") + 1) if not chr(code).isupper()]

# What is typed for characters that compatibility decomposition (NFKD) leaves untypeable.
TYPED = {
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "‐": "-",
    "–": "-",
    "—": "--",
    "−": "-",
    "⁄": "/",
    "æ": "ae",
    "œ": "oe",
    "ø": "o",
    "ł": "l",
    "ß": "ss",
}


def normalizer() -> normalizers.Normalizer:
    """Lower-cased typeable characters and white space."""
    return normalizers.Sequence(
        [
            normalizers.NFKD(),  # an accent becomes a character of its own, dropped with the rest below
            normalizers.Lowercase(),
            *(normalizers.Replace(character, typed) for character, typed in TYPED.items()),
            normalizers.Replace(Regex(r"[^\s!-~]+"), ""),
        ]
    )


def train_tokenizer(batches: Iterator[list[str]], vocab_size: int) -> Tokenizer:
    """Trains WordPiece on batches of texts.

    The trainer numbers continuations of words ("##a") as it meets them in a hash map whose order differs from
    run to run, and settles ties between merges by number (huggingface/tokenizers issue 1794). Giving it all
    of them beforehand, in a fixed order, makes the vocabulary a function of the text.
    """
    tokenizer = _tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS["unk"]))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*SPECIAL_TOKENS.values(), *TYPEABLE, *(f"##{character}" for character in TYPEABLE)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(batches, trainer)
    # Built anew, because the trainer also made special tokens, never to be split, of the letters it was
    # given.
    model = models.WordPiece(tokenizer.get_vocab(), unk_token=SPECIAL_TOKENS["unk"], max_input_chars_per_word=100)
    return _tokenizer(model)


def _tokenizer(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def wrap_tokenizer(tokenizer: Tokenizer, sequence_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer as `transformers` uses it: `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`."""
    tokenizer.post_processor = processors.BertProcessing(
        *((SPECIAL_TOKENS[name], tokenizer.token_to_id(SPECIAL_TOKENS[name])) for name in ("sep", "cls"))
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=sequence_length,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in SPECIAL_TOKENS.items()},
    )


def load_tokenizer(name: str, sequence_length: int) -> PreTrainedTokenizerFast:
    """An existing tokenizer, by directory or Hub name.

    Raises:
        DataError: if it cannot be loaded, has no Rust implementation, lacks a special token, or pads with
            another id than 0.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise DataError(f"tokenizer {name} could not be loaded: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(
            f"tokenizer {name} is a {type(tokenizer).__name__}, it must be one of the `tokenizers` library"
        )
    missing = [special for special in SPECIAL_TOKENS if getattr(tokenizer, f"{special}_token_id") is None]
    if missing:
        raise DataError(f"tokenizer {name} has no {', '.join(missing)} token")
    if tokenizer.pad_token_id != 0:
        raise DataError(f"tokenizer {name} pads with id {tokenizer.pad_token_id}, the model needs 0")
    tokenizer.backend_tokenizer.no_truncation()  # some are saved with it, which would cut every text short
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.model_max_length = sequence_length
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def special_token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {name: getattr(tokenizer, f"{name}_token_id") for name in SPECIAL_TOKENS}
