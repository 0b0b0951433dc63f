"""Options of data preparation. The docstrings of the fields are the `--help` of commands."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ultrafastbert.utils.validation import NOT_EMPTY, POSITIVE, PROPER_FRACTION, at_least, check_fields, one_of


@dataclass
class DataArguments:
    """Where the text comes from and how it becomes sequences of tokens."""

    given: ClassVar[frozenset[str] | None] = None
    # The options that the command line names, other than a file or a default; None: they are not known.

    source: str | list[str] = "docstrings"
    """Text to train on, one or several of: `docstrings` (English prose from the installed Python packages, no
    download), a file or glob (.txt, .jsonl, .parquet, each also with .gz, .xz or .zst), the name of a data
    set on the Hugging Face Hub. Or one directory of prepared data, which is used as it is."""
    hub_config: str | None = None
    """Configuration of a Hub data set, such as `wikitext-103-raw-v1`. Default: the data set's default."""
    hub_split: str = "train"
    """Split of a Hub data set to read. The validation texts are held out of it too."""
    hub_revision: str | None = None
    """Branch, tag or commit of a Hub data set. Default: its main branch. Data that was prepared from a branch is
    reused even if the branch has moved since; give a commit to choose a state of the data set."""
    streaming: bool = True
    """Read a Hub data set as a stream, instead of downloading all of it into the Hub's cache first."""
    text_column: str = "text"
    """Field of .jsonl files, column of .parquet files and of Hub data sets that holds the text."""
    sample_by: Literal["line", "paragraph"] = "line"
    """What counts as one text in a .txt file: each line, or the lines up to the next empty line joined by spaces
    (for files with hard line breaks, and to hold out whole documents)."""
    max_texts: int | None = None
    """Stop reading after this many texts, counted over all sources in their order. Default: read all of them."""
    tokenizer: str | None = None
    """Directory or Hub name of an existing fast tokenizer to use. Default: train one on the text."""
    vocab_size: int = 32768
    """Number of tokens in the trained vocabulary, at least 256. A small text gives fewer. Ignored if `tokenizer` is
    given."""
    tokenizer_characters: int = 200_000_000
    """Maximum number of characters of text to train the vocabulary on. A larger text is sampled evenly."""
    sequence_length: int = 128
    """Number of tokens in a sequence."""
    max_tokens_per_character: float | None = 0.25
    """Drop a text that has more tokens per character than this: such text is not plain language, or not in the
    tokenizer's language. A smaller vocabulary needs a higher limit. `null` drops none."""
    deduplicate: bool = True
    """Keep only the first of several identical texts."""
    order: Literal["source", "prevalence"] = "source"
    """Order of the training sequences in the file: as read, or sequences of common tokens first (by the mean
    log-frequency of their tokens)."""
    validation_fraction: float = 0.01
    """Fraction of the texts held out for validation, between 0 and 1. A hash of the text decides, so the split
    depends neither on order nor on chance. Ignored if `validation_source` is given."""
    validation_source: str | list[str] | None = None
    """Text for validation, named as in `source`; with `deduplicate`, a text that is also in `source` is not trained
    on. Default: a fraction of the source's texts."""
    cache_dir: str | None = None
    """Directory where prepared data is kept and found again. Default: `ultrafastbert` in $XDG_CACHE_HOME or
    ~/.cache."""

    def __post_init__(self):
        check_fields(self, NOT_EMPTY, "source", "validation_source")
        check_fields(self, one_of("line", "paragraph"), "sample_by")
        check_fields(self, POSITIVE, "max_texts", "tokenizer_characters", "max_tokens_per_character")
        check_fields(self, at_least(256), "vocab_size")
        check_fields(self, at_least(2), "sequence_length")
        check_fields(self, one_of("source", "prevalence"), "order")
        check_fields(self, PROPER_FRACTION, "validation_fraction")
