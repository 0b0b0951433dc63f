"""Encoders and texts are loaded from models, checkpoints and files, or errors name what cannot be loaded."""

import shutil

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from ultrafastbert import UltraFastBertConfig, UltraFastBertForMaskedLM
from ultrafastbert.inspection.loading import find_models, load_encoder, read_texts
from ultrafastbert.utils.errors import UserError


def test_checkpoints_come_in_the_order_of_their_steps(small_run):
    names = [str(small_run / "checkpoints" / f"step-{step}") for step in (12, 4, 8)]
    expected = [names[1], names[2], names[0]]
    assert find_models([str(small_run / "final"), *names]) == [*expected, str(small_run / "final")]
    assert find_models([str(small_run)]) == expected


def test_a_checkpoint_loads_as_the_model_that_was_saved(small_run, tmp_path, packed_directory):
    """The last checkpoint equals the final model, for a run that has ended and for one that has not."""
    text = "w1 w2 w3"
    final = load_encoder(str(small_run / "final"))
    inputs = final.tokenizer(text, return_tensors="pt")
    copy = tmp_path / "run"
    shutil.copytree(small_run, copy)
    for ended in (True, False):
        if not ended:
            shutil.rmtree(copy / "final")
        encoder = load_encoder(str(copy / "checkpoints" / "step-12"))
        assert encoder.tokenizer(text)["input_ids"] == inputs["input_ids"][0].tolist()
        assert encoder.model.config.max_position_embeddings == final.model.config.max_position_embeddings
        assert encoder.tokens == final.tokens and not encoder.model.training
        with torch.no_grad():
            assert torch.equal(encoder.model(**inputs)[0], final.model(**inputs)[0])

    moved = packed_directory.rename(packed_directory.with_name("moved"))
    try:
        with pytest.raises(UserError, match=f"has not ended, and .*: {packed_directory} is not a directory"):
            load_encoder(str(copy / "checkpoints" / "step-12"))
    finally:
        moved.rename(packed_directory)
    (copy / "checkpoints" / "step-8" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="step-8 is damaged"):
        load_encoder(str(copy / "checkpoints" / "step-8"))


def save(directory, model, tokenizer_of):
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tokenizer_of).save_pretrained(directory)
    return str(directory)


@pytest.fixture
def other_models(tmp_path, small_model):
    """Models that cannot be inspected, by their error messages."""
    size = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    models = {
        "is a UltraFastBertModel with no trees in its layers": UltraFastBertForMaskedLM(
            UltraFastBertConfig(**size, feedforward="dense", intermediate_size=8)
        ),
        "with trees of depth 0, which decide nothing": UltraFastBertForMaskedLM(
            UltraFastBertConfig(**size, fff_trees=4, fff_depth=0)
        ),
        "is a BertModel with no trees": BertModel(BertConfig(**size, intermediate_size=8)),
        "knows 50 tokens; its tokenizer has 60": UltraFastBertForMaskedLM(
            UltraFastBertConfig(**(size | {"vocab_size": 50}), fff_depth=2)
        ),
    }
    return {
        message: save(tmp_path / f"other-{index}", model, small_model)
        for index, (message, model) in enumerate(models.items())
    }


def test_models_that_cannot_be_inspected(other_models, tmp_path, small_model):
    for message, directory in other_models.items():
        with pytest.raises(UserError, match=message):
            load_encoder(directory)
    with pytest.raises(UserError, match="out/no/model does not exist"):
        load_encoder("out/no/model")
    with pytest.raises(UserError, match=f"^model {tmp_path} cannot be loaded"):
        load_encoder(str(tmp_path))
    AutoModel.from_pretrained(small_model).save_pretrained(tmp_path / "alone")
    with pytest.raises(UserError, match="the tokenizer of model .*alone, which should be beside it, cannot be loaded"):
        load_encoder(str(tmp_path / "alone"))
    (tmp_path / "fresh" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="fresh is a run that has no checkpoint yet"):
        find_models([str(tmp_path / "fresh")])


def test_missing_weights_are_named(small_model, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(small_model, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    del weights["model.layers.0.feedforward.weight_in"]
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="has no weights for layers.0.feedforward.weight_in"):
        load_encoder(str(tmp_path / "model"))


def test_texts_are_read_from_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n  \ntwo\n")
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n{"text": "four"}\n')
    files = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
    assert [text.strip() for text in read_texts(files, None)] == ["one", "two", "three", "four"]
    assert [text.strip() for text in read_texts(files, 3)] == ["one", "two", "three"]
