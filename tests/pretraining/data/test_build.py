"""Sequences, counts and statistics of prepared data, against the texts they come from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ultrafastbert.pretraining.data import frequencies as frequencies_module
from ultrafastbert.pretraining.data import tokenizer as tokenizer_module
from ultrafastbert.pretraining.data.frequencies import prevalence, token_frequencies, unigram_entropy
from ultrafastbert.pretraining.data.packed import DataError
from ultrafastbert.pretraining.data.prepare import prepare
from ultrafastbert.pretraining.data.tokenizer import encode, split_at_spaces

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


@pytest.fixture
def prepared(arguments_for):
    def make(source, **options):
        return prepare(arguments_for(source, **options), progress=False)

    return make


def unpacked(packed, sequences):
    """The texts in sequences, as token ids between separators, and the last one, which may be cut off."""
    stream = sequences.reshape(-1).tolist()
    texts, text = [], []
    for token in stream:
        if token == packed.special_token_ids["sep"]:
            texts.append(text)
            text = []
        else:
            text.append(token)
    return texts, text


def encoded(packed, texts):
    tokenizer = AutoTokenizer.from_pretrained(packed.tokenizer_directory)
    return [tuple(ids) for ids in tokenizer(texts, add_special_tokens=False).input_ids]


def test_sequences_are_the_texts_one_after_the_other(prepared, text_file, texts):
    packed = prepared(text_file)
    expected = encoded(packed, texts)
    found = []
    for sequences in (packed.train, packed.validation):
        whole, cut = unpacked(packed, sequences)
        assert set(map(tuple, whole)) <= set(expected)
        assert not cut or any(ids[: len(cut)] == tuple(cut) for ids in expected)
        positions = [expected.index(tuple(text)) for text in whole]
        assert positions == sorted(positions)
        found += positions
    assert (
        len(set(found)) == len(found) >= len(texts) - 4
    )  # at most one sequence of a split is cut off: two texts or so


def test_sequences_decode_to_the_normalized_texts(prepared, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"Ünicode “Text” — number {i}, 世 😀 Ends." for i in range(100)))
    packed = prepared(path)
    tokenizer = AutoTokenizer.from_pretrained(packed.tokenizer_directory)
    whole, _ = unpacked(packed, packed.train)
    expected = {f'unicode " text " -- number {i}, ends.' for i in range(100)}
    assert {tokenizer.decode(text) for text in whole} <= expected
    assert len(whole) > 70


def test_every_text_is_counted(prepared, tmp_path, texts):
    path = tmp_path / "text.txt"
    bad = "x7$ k1! q(9) z@3 " * 5
    path.write_text("\n".join([*texts, "", "   ", "世界", *texts[:50], bad, texts[3]]))
    packed = prepared(path, max_tokens_per_character=0.5)
    counts = packed.manifest["counts"]
    assert counts["texts_read"] == 600 + 3 + 50 + 2
    assert counts["texts_empty"] == 2
    assert counts["texts_without_tokens"] == 1
    assert counts["texts_repeated"] == 51
    assert counts["texts_over_ratio"] == 1 and counts["characters_over_ratio"] == len(bad.strip())
    assert counts["texts_train"] + counts["texts_validation"] == 600
    for split, sequences in (("train", packed.train), ("validation", packed.validation)):
        assert counts[f"tokens_{split}"] == sequences.size + counts[f"tokens_left_over_{split}"]
        assert counts[f"tokens_left_over_{split}"] < packed.sequence_length


def test_texts_with_too_many_tokens_per_character_are_dropped(prepared, text_file, texts):
    kept = prepared(text_file, vocab_size=256)
    ratios = {text: len(ids) / len(text) for text, ids in zip(texts, encoded(kept, texts), strict=True)}
    limit = float(np.median(list(ratios.values())))
    counts = prepared(text_file, vocab_size=256, max_tokens_per_character=limit).manifest["counts"]
    assert counts["texts_over_ratio"] == sum(ratio > limit for ratio in ratios.values()) > 0


def test_repeated_texts_stay_without_deduplication(prepared, tmp_path, texts):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(texts * 2))
    assert prepared(path).manifest["counts"]["tokens_train"] * 2 == pytest.approx(
        prepared(path, deduplicate=False).manifest["counts"]["tokens_train"]
    )


def test_the_split_depends_on_the_text_and_not_on_the_order(prepared, tmp_path, texts):
    held_out = []
    for name, ordered in (("a", texts), ("b", texts[::-1])):
        path = tmp_path / f"{name}.txt"
        path.write_text("\n".join(ordered))
        packed = prepared(path)
        train, validation = (
            {tuple(text) for text in unpacked(packed, sequences)[0]} for sequences in (packed.train, packed.validation)
        )
        assert not train & validation
        held_out.append({text for text, ids in zip(texts, encoded(packed, texts), strict=True) if ids in validation})
    assert len(held_out[0] ^ held_out[1]) <= 4  # the texts cut off at the end are not the same
    assert 30 < len(held_out[0]) < 100


def test_validation_texts_of_their_own(prepared, tmp_path, texts):
    train, validation = tmp_path / "train.txt", tmp_path / "validation.txt"
    train.write_text("\n".join(texts[:500]))
    validation.write_text("\n".join(texts[450:]))  # fifty texts are in both
    packed = prepared(train, validation_source=str(validation), max_texts=480)
    trained, held_out = (set(map(tuple, unpacked(packed, part)[0])) for part in (packed.train, packed.validation))
    assert trained <= set(encoded(packed, texts[:450])) and len(trained) >= 447  # the last ones may be cut off
    assert held_out <= set(encoded(packed, texts[450:])) and len(held_out) >= 147
    assert packed.manifest["counts"]["texts_repeated"] == 30  # of the 480 that were read
    assert prepared(train, validation_source=[str(validation)], max_texts=480).directory == packed.directory
    assert prepared(train, max_texts=480).directory != packed.directory


@pytest.mark.parametrize("content, message", [("\n", "no text in .*empty.txt"), ("a b\n", "in validation_source")])
def test_validation_texts_that_are_too_few(prepared, text_file, tmp_path, content, message):
    (tmp_path / "empty.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        prepared(text_file, validation_source=str(tmp_path / "empty.txt"))


def test_texts_cannot_hold_special_tokens(prepared, tmp_path, texts):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"{text} [MASK] [SEP] [PAD] [UNK] [CLS]" for text in texts))
    packed = prepared(path)
    assert np.setdiff1d(packed.train, [SPECIAL["sep"]]).min() >= len(SPECIAL)
    assert (packed.train == SPECIAL["sep"]).sum() <= packed.manifest["counts"]["texts_train"]


def test_max_texts(prepared, text_file, texts):
    packed = prepared([str(text_file), str(text_file)], max_texts=700)
    assert packed.manifest["counts"]["texts_read"] == 700
    assert packed.manifest["counts"]["texts_repeated"] == 100


def test_long_texts_are_whole(prepared, tmp_path, texts, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text(" ".join(texts) + "\n" + "\n".join(texts))
    whole = prepared(path)
    monkeypatch.setattr(tokenizer_module, "MAX_CHARACTERS", 50)
    pieces = prepared(path, cache_dir=str(tmp_path / "other"))
    assert pieces.fingerprint == whole.fingerprint


@given(text=st.text(" ab"), size=st.integers(1, 9))
def test_pieces_together_are_the_text_and_none_is_too_long(text, size):
    pieces = split_at_spaces(text, size)
    assert "".join(pieces) == text
    assert all(len(piece) <= size for piece in pieces)
    if all(len(word) < size for word in text.split(" ")):
        assert " ".join(pieces).split() == text.split()  # no word is cut


def test_encoding_in_pieces_changes_nothing(prepared, text_file, texts, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(prepared(text_file).tokenizer_directory).backend_tokenizer
    whole = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    monkeypatch.setattr(tokenizer_module, "MAX_CHARACTERS", 30)
    monkeypatch.setattr(tokenizer_module, "PIECES_AT_A_TIME", 7)
    assert [ids.tolist() for ids in encode(tokenizer, texts, np.dtype("<u2"))] == whole
    assert encode(tokenizer, ["世界"], np.dtype("<u2"))[0].shape == (0,)


def test_sequences_of_common_tokens_come_first(prepared, text_file, monkeypatch):
    monkeypatch.setattr(frequencies_module, "SEQUENCES_AT_A_TIME", 7)
    in_order, ordered = prepared(text_file), prepared(text_file, order="prevalence")
    frequencies = np.bincount(in_order.train.ravel(), minlength=in_order.vocab_size)
    mean_log = np.log(frequencies / frequencies.sum(), where=frequencies > 0, out=np.zeros(len(frequencies)))
    scores = mean_log[ordered.train].mean(axis=1)
    assert (np.diff(scores) < 1e-5).all()
    assert scores[0] > scores[-1]
    assert sorted(map(tuple, ordered.train)) == sorted(map(tuple, in_order.train))
    assert np.array_equal(ordered.validation, in_order.validation)


def test_statistics_of_tokens(monkeypatch):
    monkeypatch.setattr(frequencies_module, "SEQUENCES_AT_A_TIME", 2)
    sequences = np.array([[5, 5, 6, 3], [5, 6, 6, 3], [5, 6, 5, 3]], np.uint16)
    frequencies = token_frequencies(sequences, vocab_size=8)
    assert frequencies.tolist() == [0, 0, 0, 3, 0, 5, 4, 0]
    p = np.array([5 / 9, 4 / 9])
    assert unigram_entropy(frequencies, SPECIAL) == pytest.approx(-(p * np.log(p)).sum())
    expected = [np.log(np.array([5, 5, 4, 3]) / 12).mean(), np.log(np.array([5, 4, 4, 3]) / 12).mean()]
    assert prevalence(sequences, frequencies)[:2] == pytest.approx(expected)


def test_large_vocabularies_are_stored_in_32_bits(prepared, tmp_path, text_file, texts):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*(f"[{name.upper()}]" for name in SPECIAL), *(f"unused{i}" for i in range(70_000))]
    words += sorted({word for text in texts for word in text.replace(".", " .").split()})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {f"{name}_token": f"[{name.upper()}]" for name in SPECIAL}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path / "mine")
    packed = prepared(text_file, tokenizer=str(tmp_path / "mine"))
    assert packed.train.dtype == np.uint32 and packed.vocab_size == len(words)
    assert packed.train.max() >= 1 << 16
    assert tuple(unpacked(packed, packed.train)[0][0]) in encoded(packed, texts)


@pytest.mark.parametrize(
    "content, options, message",
    [
        ("", {}, "no text in .*text.txt: 0 texts were read"),
        ("\n \n", {}, "no text in .*text.txt: 2 texts were read, all of them empty"),
        (
            "世界\n" * 9,
            {},
            "too little text for one training sequence of 16 tokens: .*1 without typeable characters, 8 repeated",
        ),
        ("one two three\n", {}, "too little text for one training sequence of 16 tokens: give more text"),
        ("a1! b2? c3\nd4$ e5%\n", {"max_tokens_per_character": 0.1}, "2 with too many tokens per character"),
    ],
)
def test_too_little_text_is_an_error(prepared, tmp_path, content, options, message):
    path = tmp_path / "text.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        prepared(path, **options)


def test_too_little_validation_text_is_an_error(prepared, text_file):
    with pytest.raises(
        DataError, match="one validation sequence of 16 tokens: give more text or raise validation_fraction"
    ):
        prepared(text_file, validation_fraction=1e-6)
