"""The options of data preparation, as one dataclass: its field docstrings are the `--help` of commands."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class DataArguments:
    """Where the text comes from and how it becomes rows of tokens."""

    source: str | list[str] = "docstrings"
    """Text to train on, one or several of: `docstrings` (English prose from the installed Python packages, no
    download), a file or glob (.txt, .jsonl, .parquet, each also with .gz, .xz or .zst), the name of a data
    set on the Hugging Face Hub. Or one directory of data prepared before, which is used as it is."""

    hub_config: str | None = None
    """Configuration of a Hub data set, such as `wikitext-103-raw-v1`. Default: the data set's own."""

    hub_split: str = "train"
    """Split of a Hub data set to read; the validation rows are held out of it too."""

    hub_revision: str | None = None
    """Branch, tag or commit of a Hub data set. Default: its main branch. A newer state of the branch is not
    noticed once the data is prepared; name the commit to choose it."""

    streaming: bool = True
    """Read a Hub data set as a stream, instead of downloading all of it into the Hub's cache first."""

    text_column: str = "text"
    """Field of .jsonl, column of .parquet and of Hub data sets that holds the text."""

    sample_by: Literal["line", "paragraph"] = "line"
    """What one text of a .txt file is: each line, or the lines up to the next empty line joined by spaces
    (for files with hard line breaks, and to hold out whole documents)."""

    max_texts: int | None = None
    """Stop reading after this many texts, of all sources together, in their order. Default: read them all."""

    tokenizer: str | None = None
    """Directory or Hub name of an existing fast tokenizer to use. Default: train one on the text."""

    vocab_size: int = 32768
    """Tokens in the vocabulary that is trained, at least 256. A small text gives fewer. Not used with
    `tokenizer`."""

    tokenizer_characters: int = 200_000_000
    """Characters of text, at most, that the vocabulary is trained on; a larger text is sampled evenly."""

    sequence_length: int = 128
    """Tokens in a row."""

    max_tokens_per_character: float | None = 0.25
    """Drop a text that has more tokens than this for each of its characters: such text is not plain language,
    or not that of the tokenizer. A smaller vocabulary needs a higher threshold. `null` drops none."""

    deduplicate: bool = True
    """Keep only the first of several exactly equal texts."""

    order: Literal["source", "prevalence"] = "source"
    """Order of the training rows in the file: as read, or rows of common tokens first (by the mean
    log-frequency of their tokens)."""

    validation_fraction: float = 0.01
    """Share of the texts held out for validation, between 0 and 1. A hash of the text decides, so that the
    split depends neither on order nor on chance."""

    cache_dir: str | None = None
    """Directory that prepared data is kept in and found again. Default: `ultrafastbert` in $XDG_CACHE_HOME or
    ~/.cache."""

    def __post_init__(self):
        for name, least in (("vocab_size", 256), ("sequence_length", 2), ("tokenizer_characters", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least {least}")
        if self.max_texts is not None and self.max_texts < 1:
            raise ValueError(f"max_texts is {self.max_texts}, it must be at least 1, or null to read everything")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction is {self.validation_fraction}, it must be between 0 and 1")
        if self.max_tokens_per_character is not None and not self.max_tokens_per_character > 0:
            raise ValueError(
                f"max_tokens_per_character is {self.max_tokens_per_character}, it must be positive, or null"
            )
        for name, allowed in (("sample_by", ("line", "paragraph")), ("order", ("source", "prevalence"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, it must be one of {', '.join(allowed)}")
        if not self.source:
            raise ValueError("source is empty, it must name at least one source of text")
