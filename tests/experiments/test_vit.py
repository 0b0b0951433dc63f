import pytest
import torch

from ultrafastbert.experiments.arguments import Recipe
from ultrafastbert.experiments.candidates import Layer
from ultrafastbert.experiments.images import load_images, split_images
from ultrafastbert.experiments.training import train
from ultrafastbert.experiments.vit import VisionTransformer

LAYERS = [Layer("ff", 32, 32), Layer("moe", 32, 8), Layer("fff", 32, 8)]


def small(layer, depth=1, dropout=0.1):
    torch.manual_seed(0)
    return VisionTransformer((1, 8, 8), 10, 4, 32, depth, 2, layer.build, dropout)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.kind)
def test_it_learns_with_each_layer(layer):
    data = split_images(load_images("digits"), seed=0)
    recipe = Recipe("adam", 3e-3, 64, epochs=8, patience=8)
    outcome = train(small(layer), data, recipe, seed=0)
    assert outcome["generalisation"] > 0.5  # a tenth is chance
    assert outcome["history"]["loss"][-1] < outcome["history"]["loss"][0]
    trees = 1 if layer.kind == "fff" else 0
    assert len(outcome["leaves_used"]) == trees and all(1 <= leaves <= 4 for leaves in outcome["leaves_used"])


def test_it_has_as_many_layers_as_blocks_and_they_all_learn():
    model = small(LAYERS[2], depth=3)
    logits = model(torch.randn(5, 1, 8, 8))
    assert logits.shape == (5, 10) and len(model.blocks) == 3
    logits.sum().backward()
    for block in model.blocks:
        assert block.feedforward.leaf_weight_out.grad.abs().sum() > 0


def test_the_order_of_patches_matters_and_that_of_images_does_not():
    model = small(LAYERS[0]).eval()
    torch.manual_seed(1)
    torch.nn.init.normal_(model.positions)
    images = torch.randn(4, 1, 8, 8)
    logits = model(images)
    torch.testing.assert_close(model(images.flip(0)), logits.flip(0))
    swapped = torch.cat([images[:, :, 4:], images[:, :, :4]], dim=2)
    assert not torch.allclose(model(swapped), logits, atol=1e-3)


def test_patches_must_fit():
    with pytest.raises(ValueError, match="patch_size is 3; it should divide the image's 8 by 8 pixels"):
        VisionTransformer((1, 8, 8), 10, 3, 32, 1, 2, LAYERS[0].build)
