import pytest
import torch

from ultrafastbert.experiments.arguments import LayerTrainingArguments
from ultrafastbert.experiments.candidates import Candidate
from ultrafastbert.experiments.images import load_images, split_images
from ultrafastbert.experiments.training import train_classifier
from ultrafastbert.experiments.vit import VisionTransformer

LAYERS = [Candidate("ff", 32, 32), Candidate("moe", 32, 8), Candidate("fff", 32, 8)]


def small(layer, depth=1, dropout=0.1):
    torch.manual_seed(0)
    return VisionTransformer((1, 8, 8), 10, 4, 32, depth, 2, layer.build, dropout)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.kind)
def test_it_learns_with_each_layer(layer):
    data = split_images(load_images("digits"), seed=0)
    arguments = LayerTrainingArguments("adam", 3e-3, 64, epochs=8, patience=8)
    outcome = train_classifier(small(layer), data, arguments, seed=0)
    assert outcome["generalisation"] > 0.5  # chance is 0.1
    assert outcome["history"]["loss"][-1] < outcome["history"]["loss"][0]
    trees = 1 if layer.kind == "fff" else 0
    assert len(outcome["leaves_used"]) == trees and all(1 <= leaves <= 4 for leaves in outcome["leaves_used"])


def test_every_transformer_layer_has_a_feedforward_layer_that_learns():
    model = small(LAYERS[2], depth=3)
    logits = model(torch.randn(5, 1, 8, 8))
    assert logits.shape == (5, 10) and len(model.layers) == 3
    logits.sum().backward()
    for transformer_layer in model.layers:
        assert transformer_layer.feedforward.leaf_weight_out.grad.abs().sum() > 0


def test_the_order_of_patches_matters_and_the_order_of_images_does_not():
    model = small(LAYERS[0]).eval()
    torch.manual_seed(1)
    torch.nn.init.normal_(model.positions)
    images = torch.randn(4, 1, 8, 8)
    logits = model(images)
    torch.testing.assert_close(model(images.flip(0)), logits.flip(0))
    swapped = torch.cat([images[:, :, 4:], images[:, :, :4]], dim=2)
    assert not torch.allclose(model(swapped), logits, atol=1e-3)


def test_patches_must_divide_the_image():
    with pytest.raises(ValueError, match="patch_size is 3; it should divide the image's 8 by 8 pixels"):
        VisionTransformer((1, 8, 8), 10, 3, 32, 1, 2, LAYERS[0].build)
