"""The tokenizer: its normalization, its vocabulary, and which existing ones are accepted."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ultrafastbert.pretraining.data.packed import DataError
from ultrafastbert.pretraining.data.tokenizer import (
    SPECIAL_TOKENS,
    TYPEABLE,
    load_tokenizer,
    normalizer,
    train_tokenizer,
    wrap_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer(texts):
    return wrap_tokenizer(train_tokenizer(iter([texts]), 400), sequence_length=16)


@pytest.mark.parametrize(
    "text, typed",
    [
        ("Upper CASE", "upper case"),
        ("Café NAÏVE Ångström Źdźbło", "cafe naive angstrom zdzblo"),
        ("“quoted” ‘words’ don’t", "\"quoted\" 'words' don't"),
        ("one—two – three‐four…", "one--two - three-four..."),
        ("Cæsar Œuvre STRAẞE Ørsted", "caesar oeuvre strasse orsted"),
        ("ﬁne ½ ① ™ Ａ 𝐁 K Ⅷ", "fine 1/2 1 tm a b k viii"),
        ("emoji 😀 世界 Привет", "emoji   "),
        ("zero\u200bwidth soft\u00adhyphen", "zerowidth softhyphen"),
        ("no\u00a0break\ttab", "no break\ttab"),
    ],
)
def test_normalization(text, typed):
    assert normalizer().normalize_str(text) == typed


@settings(deadline=None)
@given(st.text())
def test_normalized_text_is_typeable_and_stays_as_it_is(text):
    normalized = normalizer().normalize_str(text)
    assert all(character in TYPEABLE or character.isspace() for character in normalized)
    assert normalizer().normalize_str(normalized) == normalized


@settings(deadline=None)
@given(text=st.text())
def test_words_of_any_characters_are_never_unknown(tokenizer, text):
    if all(len(word) <= 100 for word in normalizer().normalize_str(text).split()):
        assert tokenizer.unk_token_id not in tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def test_training_is_deterministic(texts):
    vocabularies = {train_tokenizer(iter([texts[:200]]), 300).to_str() for _ in range(5)}
    assert len(vocabularies) == 1


def test_training_can_be_interrupted():
    program = """
import os, signal, time
from ultrafastbert.pretraining.data.tokenizer import train_tokenizer
signal.signal(signal.SIGINT, signal.default_int_handler)
count = 0
def batches():
    global count
    while count < 20_000:
        count += 1
        if count == 50:  # the main thread waits by now
            os.kill(os.getpid(), signal.SIGINT)
        yield ["Some words."]
        time.sleep(0.001)
try:
    train_tokenizer(batches(), 300)
except KeyboardInterrupt:
    print(count)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 20_000


def test_the_vocabulary_has_at_most_the_requested_size(texts):
    assert train_tokenizer(iter([texts]), 300).get_vocab_size() == 300
    assert train_tokenizer(iter([["Very few words, very few."]]), 300).get_vocab_size() < 300


def test_special_tokens_come_first_and_letters_are_ordinary(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS.values())) == [0, 1, 2, 3, 4]
    assert set(tokenizer.all_special_tokens) == set(SPECIAL_TOKENS.values())
    assert list(tokenizer.added_tokens_decoder) == [0, 1, 2, 3, 4]


def test_a_saved_tokenizer_is_the_same(tokenizer, texts, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(texts).input_ids == tokenizer(texts).input_ids
    assert loaded.model_max_length == 16
    assert loaded.model_input_names == ["input_ids", "attention_mask"]
    assert set(loaded("One", "two")) == {"input_ids", "attention_mask"}


def test_pairs_and_masks_as_in_bert(tokenizer):
    cls, sep, mask = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id
    a, b = (tokenizer(text, add_special_tokens=False).input_ids for text in ("ba de", "fi"))
    assert tokenizer("ba de").input_ids == [cls, *a, sep]
    assert tokenizer("ba de", "fi").input_ids == [cls, *a, sep, *b, sep]
    assert tokenizer("ba [MASK]").input_ids == [cls, *tokenizer("ba", add_special_tokens=False).input_ids, mask, sep]
    assert tokenizer.decode(tokenizer("Ba de, fi!").input_ids, skip_special_tokens=True) == "ba de, fi!"


def save_word_level(directory, tokens, **special):
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)
    return str(directory)


def test_an_existing_tokenizer_is_loaded(tokenizer, tmp_path, texts):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path), sequence_length=64)
    assert loaded.model_max_length == 64
    assert loaded(texts[0]).input_ids == tokenizer(texts[0]).input_ids


def test_an_existing_tokenizer_no_longer_cuts_or_pads(tokenizer, tmp_path, texts):
    cutting = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    cutting.enable_truncation(4)
    cutting.enable_padding(length=9)
    wrap_tokenizer(cutting, 16).save_pretrained(tmp_path)
    assert len(Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(texts[0]).ids) == 9
    backend = load_tokenizer(str(tmp_path), sequence_length=16).backend_tokenizer
    assert backend.encode(texts[0]).ids == tokenizer.backend_tokenizer.encode(texts[0]).ids


def test_unsuitable_tokenizers_are_refused(tmp_path):
    special = {f"{name}_token": token for name, token in SPECIAL_TOKENS.items()}
    tokens = list(SPECIAL_TOKENS.values())
    no_mask = save_word_level(tmp_path / "mask", tokens, **{k: v for k, v in special.items() if k != "mask_token"})
    with pytest.raises(DataError, match="no mask token"):
        load_tokenizer(no_mask, 16)
    pad_last = save_word_level(tmp_path / "pad", tokens[::-1], **special)
    with pytest.raises(DataError, match="pads with id 4"):
        load_tokenizer(pad_last, 16)
    with pytest.raises(DataError, match="could not be loaded"):
        load_tokenizer(str(tmp_path), 16)
