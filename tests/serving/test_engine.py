"""What engines compute equals what the models compute directly, whatever else is in a batch; what cannot be served."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from tests.conversion import bert_family
from tests.export.helpers import make, save
from tests.inference.test_optimize import needs_native
from tests.serving.helpers import EXACT, TEXTS, save_encoder
from ultrafastbert import optimize_for_inference
from ultrafastbert.conversion.encoder import convert_encoder
from ultrafastbert.serving.arguments import ServeArguments
from ultrafastbert.serving.engine import Embedder, MaskFiller, load_engine
from ultrafastbert.utils.errors import UserError

PLAIN = {"optimize": False}


def load(directory, **options):
    return load_engine(ServeArguments(model=str(directory), **options))


def embed(engine, texts):
    return torch.stack(engine.run(engine.encode(texts))).numpy()


@torch.no_grad()
def embed_directly(directory, text, pooling="mean"):
    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory).eval()
    states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    return (states[0] if pooling == "cls" else states.mean(dim=0)).numpy()


@pytest.mark.parametrize("options", [PLAIN, pytest.param(EXACT, marks=needs_native)], ids=["plain", "optimised"])
@pytest.mark.parametrize("pooling", ["auto", "cls"])
def test_embeddings_do_not_depend_on_the_batch(encoder, options, pooling):
    engine = load(encoder, pooling=pooling, **options)
    together = embed(engine, TEXTS)
    assert together.dtype == np.float32 and together.shape == (len(TEXTS), engine.dimensions)
    for index, text in enumerate(TEXTS):
        np.testing.assert_allclose(together[index], embed_directly(encoder, text, pooling), atol=1e-5)
        np.testing.assert_allclose(together[index], embed(engine, [text])[0], atol=1e-5)
    assert len(np.unique(together.round(3), axis=0)) == len(TEXTS)


def test_a_model_with_a_head_serves_embeddings_if_pooling_is_given(small_model):
    assert isinstance(load(small_model, **PLAIN), MaskFiller)
    engine = load(small_model, pooling="mean", **PLAIN)
    np.testing.assert_allclose(embed(engine, TEXTS)[2], embed_directly(small_model, TEXTS[2]), atol=1e-5)


@pytest.fixture(params=[False, pytest.param(True, marks=needs_native)], ids=["original", "saved-optimised"])
def sentences(request, tokenizer_directory, tmp_path):
    """A model of sentence-transformers with a dense layer, a norm, prompts and a limit, and its directory."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    encoder = Transformer(save_encoder(tmp_path / "encoder", tokenizer_directory), max_seq_length=9)
    torch.manual_seed(0)
    modules = [encoder, Pooling(16, "mean"), Dense(16, 6), Normalize()]
    prompts = {"query": "w30 ", "document": ""}
    model = sentence_transformers.SentenceTransformer(
        modules=modules, prompts=prompts, default_prompt_name="query", device="cpu"
    )
    saved = optimize_for_inference(model, verbose=False, **EXACT) if request.param else model
    saved.save(str(tmp_path / "sentences"))
    return model, tmp_path / "sentences", {} if request.param else EXACT


def test_a_model_of_sentence_transformers_embeds_as_it_does(sentences):
    model, directory, options = sentences
    engine = load(directory, **options)
    assert isinstance(engine, Embedder) and engine.dimensions == 6 and engine.max_length == 9
    assert (engine.prompts, engine.default_prompt) == ({"query": "w30 ", "document": ""}, "w30 ")
    np.testing.assert_allclose(embed(engine, TEXTS), model.encode(TEXTS, prompt=""), atol=1e-5)
    truncated = engine.encode(["w1 " * 20], truncate=True)
    assert truncated[0].length == 9
    np.testing.assert_allclose(engine.run(truncated)[0], model.encode("w1 " * 20, prompt=""), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_converted_model_embeds_as_the_original(family, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    bert_family.write(tmp_path / "encoder", family, "Model")
    modules = [Transformer(str(tmp_path / "encoder"), max_seq_length=18), Pooling(24, "mean"), Normalize()]
    original = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
    original.save(str(tmp_path / "original"))
    with pytest.raises(
        UserError, match=r"original has no encoder of this package; convert it first: ultrafastbert con"
    ):
        load(tmp_path / "original")
    convert_encoder(tmp_path / "original", tmp_path / "converted")
    engine = load(tmp_path / "converted", **EXACT)
    texts = ["the tin hat", "a", "those three short lines are rather long", "hot"]
    encoded = engine.encode(texts, truncate=True)
    assert engine.max_length == 18 and max(text.length for text in encoded) == 18
    vectors = torch.stack(engine.run(encoded)).numpy()
    np.testing.assert_allclose(vectors, original.encode(texts), atol=1e-5)


@needs_native
def test_an_optimised_model_that_was_saved(encoder, tokenizer_directory, tmp_path):
    optimize_for_inference(AutoModel.from_pretrained(encoder), verbose=False, **EXACT).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tokenizer_directory).save_pretrained(tmp_path)
    np.testing.assert_allclose(embed(load(tmp_path), TEXTS), embed(load(encoder, **EXACT), TEXTS), atol=1e-6)
    for options, message in [
        (PLAIN, "optimize is False; it should be True"),
        ({"dtype": "float32"}, "dtype is float32; it should be auto"),
        ({"int8": False}, "int8 is False; it should be auto"),
    ]:
        with pytest.raises(UserError, match=f"{message}, because model .* was saved after optimize_for_inference"):
            load(tmp_path, **options)


@pytest.mark.parametrize("options", [PLAIN, pytest.param(EXACT, marks=needs_native)], ids=["plain", "optimised"])
def test_a_classifier_has_the_logits_of_the_model(classifier, options):
    engine = load(classifier, **options)
    texts = ["the cat sat", ("a dog", "the dog ran on a mat"), ("the cat", "a dog")]
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(classifier).eval(), engine.tokenizer
    results = engine.run(engine.encode(texts))
    assert [set(text.token_type_ids) for text in engine.encode(texts)] == [{0}, {0, 1}, {0, 1}]
    for text, logits in zip(texts, results, strict=True):
        pair = text if isinstance(text, tuple) else (text,)
        with torch.no_grad():
            expected = model(**tokenizer(*pair, return_tensors="pt")).logits[0]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert engine.labels == ["good", "bad", "so-so"]


@pytest.mark.parametrize(
    ("options", "function"),
    [
        ({"num_labels": 3}, lambda logits: logits.softmax(-1)),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, torch.sigmoid),
        ({"num_labels": 1}, torch.sigmoid),
        ({"num_labels": 1, "problem_type": "regression"}, lambda logits: logits),
    ],
)
def test_scores_are_those_of_the_pipeline(tmp_path, options, function):
    save(make("UltraFastBertForSequenceClassification", **options), tmp_path)
    engine = load(tmp_path, **PLAIN)
    scores = engine.score(engine.run(engine.encode(["the cat sat"]))[0])
    expected = pipeline("text-classification", str(tmp_path), top_k=None)(["the cat sat"])[0]
    assert sorted(scores.tolist(), reverse=True) == pytest.approx([each["score"] for each in expected], abs=1e-6)
    torch.testing.assert_close(scores, function(engine.run(engine.encode(["the cat sat"]))[0]))


@pytest.mark.parametrize("options", [PLAIN, pytest.param(EXACT, marks=needs_native)], ids=["plain", "optimised"])
def test_masks_are_filled_as_the_pipeline_does(small_model, options):
    engine = load(small_model, **options)
    texts = ["w1 [MASK] w3", "[MASK] w5 w6 w7 [MASK] w9 w1", "w4 [MASK]"]
    encoded = engine.encode(texts)
    pipe = pipeline("fill-mask", small_model, top_k=4)
    for text, tokens, masks in zip(texts, encoded, engine.run(encoded), strict=True):
        written = engine.write(tokens, masks, 4)
        expected = pipe(text)
        expected = expected if isinstance(expected[0], list) else [expected]
        for ours, theirs in zip(written, expected, strict=True):
            assert [each.pop("score") for each in ours] == pytest.approx(
                [each.pop("score") for each in theirs], abs=1e-6
            )
            assert ours == theirs


def test_limits_on_length(encoder, tmp_path, tokenizer_directory):
    assert load(encoder, **PLAIN).max_length == 32
    assert load(encoder, max_length=7, **PLAIN).max_length == 7
    with pytest.raises(UserError, match="max_length is 33; it should be at most 32, the positions of the model"):
        load(encoder, max_length=33, **PLAIN)
    rotary = save_encoder(tmp_path, tokenizer_directory, position_embedding="rotary")
    assert (load(rotary, **PLAIN).max_length, load(rotary, max_length=99, **PLAIN).max_length) == (32, 99)


def test_models_that_cannot_be_served(tmp_path, encoder):
    save(make("UltraFastBertForTokenClassification"), tmp_path / "tokens")
    with pytest.raises(UserError, match="is a UltraFastBertForTokenClassification; it should be one of UltraFastBert"):
        load(tmp_path / "tokens")
    bert_family.make("bert", "Model").save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match=r"is of the kind bert; convert it first: ultrafastbert convert .*bert DST"):
        load(tmp_path / "bert")
    make().save_pretrained(tmp_path / "no-tokenizer")
    with pytest.raises(UserError, match="no-tokenizer cannot be loaded"):
        load(tmp_path / "no-tokenizer", **PLAIN)
    with pytest.raises(UserError, match="no such directory"):
        load("nowhere/at/all")
    config = (tmp_path / "tokens" / "config.json").read_text()
    (tmp_path / "tokens" / "config.json").write_text(config.replace("ForTokenC", "ForSequenceC"))
    with pytest.raises(
        UserError, match=r"is not complete: classifier.weight, pooler.dense.bias, pooler.dense.weight are missing"
    ):
        load(tmp_path / "tokens")


def test_sentence_transformers_say_how_to_pool(sentences):
    with pytest.raises(UserError, match="pooling is cls; it should be auto, because modules.json"):
        load(sentences[1], pooling="cls")
