"""A SentenceTransformer of our encoder: optimised, saved, and refused where it cannot be optimised."""

import json

import numpy as np
import pytest
import torch

from tests.export.helpers import make, save
from tests.inference.test_optimize import needs_native
from ultrafastbert import UltraFastBertModel, optimize_for_inference
from ultrafastbert.inference.operators import UnpaddedLayers

sentence_transformers = pytest.importorskip("sentence_transformers")
pytestmark = needs_native
TEXTS = ["the cat sat on the mat", "a dog", "the dog ran on a cat"]


@pytest.fixture(params=["mean", "cls"])
def model(request, tmp_path):
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    encoder = Transformer(str(save(make("UltraFastBertForMaskedLM", fff_depth=5), tmp_path / "model")))
    modules = [encoder, Pooling(encoder.get_embedding_dimension(), request.param)]
    return sentence_transformers.SentenceTransformer(modules=modules, device="cpu")


def test_the_optimised_copy_encodes_the_same_and_can_be_saved(model, tmp_path):
    expected = model.encode(TEXTS)
    fast = optimize_for_inference(model, dtype="float32", int8=False, verbose=False)
    assert type(fast) is type(model) and isinstance(fast[0].model.run_layers, UnpaddedLayers)
    assert not isinstance(model[0].model.run_layers, UnpaddedLayers)
    np.testing.assert_allclose(fast.encode(TEXTS), expected, rtol=1e-4, atol=1e-4)
    fast.save(str(tmp_path / "fast"))
    assert (
        json.loads((tmp_path / "fast" / "1_Pooling" / "config.json").read_text())["pooling_mode"]
        == model[1].pooling_mode
    )
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path / "fast"), device="cpu")
    assert isinstance(loaded[0].model.run_layers, UnpaddedLayers)
    np.testing.assert_array_equal(loaded.encode(TEXTS), fast.encode(TEXTS))


def test_models_without_an_encoder_of_ours_are_refused():
    with pytest.raises(TypeError, match="model is a Sequential"):
        optimize_for_inference(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_models_with_adapters_are_refused():
    peft = pytest.importorskip("peft")
    model: UltraFastBertModel = make()
    model.add_adapter(peft.LoraConfig(target_modules=["qkv_proj"]))
    with pytest.raises(TypeError, match="without adapters"):
        optimize_for_inference(model)
