"""Text to prepare: sentences of invented words, some more frequent than others, the same in every run."""

import random

import pytest

from ultrafastbert.pretraining.data.arguments import DataArguments


def make_texts(number: int, seed: int = 0, words: int = 300) -> list[str]:
    generator = random.Random(seed)
    syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
    vocabulary = ["".join(generator.choices(syllables, k=generator.randint(1, 4))) for _ in range(words)]
    weights = [1 / rank for rank in range(1, words + 1)]
    texts = []
    for _ in range(number):
        sentence = generator.choices(vocabulary, weights, k=generator.randint(8, 30))
        texts.append(" ".join(sentence).capitalize() + ".")
    return texts


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return make_texts(600)


@pytest.fixture
def text_file(texts, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(texts))
    return path


@pytest.fixture
def arguments_for(tmp_path):
    """Arguments for a small vocabulary and short sequences, with a cache in the test's directory."""

    def make(source, **options) -> DataArguments:
        defaults = {"vocab_size": 400, "sequence_length": 16, "max_tokens_per_character": None}
        defaults |= {"validation_fraction": 0.1, "cache_dir": str(tmp_path / "cache")}
        return DataArguments(source=source if isinstance(source, list) else str(source), **(defaults | options))

    return make
