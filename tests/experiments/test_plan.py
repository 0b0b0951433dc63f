import math

import pytest
from torch import nn

from ultrafastbert.experiments.arguments import CompareArguments, Recipe
from ultrafastbert.experiments.images import load_images
from ultrafastbert.experiments.plan import plan_runs
from ultrafastbert.utils.errors import UserError


def arguments(section=None, **options):
    result = CompareArguments()
    for name, value in options.items():
        setattr(getattr(result, section), name, value)
    return result


def layers_of(experiment, options):
    return list(dict.fromkeys(run.layer for run in plan_runs(experiment, options)))


def test_table_1_has_every_width_with_every_leaf_size():
    layers = layers_of("widths", arguments())
    assert [layer.width for layer in layers if layer.kind == "ff"] == [16, 32, 64, 128]
    trees = {(layer.width, layer.block): layer.depth for layer in layers if layer.kind == "fff"}
    assert len(trees) == 16 and all(leaf * 2**depth == width for (width, leaf), depth in trees.items())
    assert {layer.hardening for layer in layers if layer.kind == "fff"} == {3.0}


def test_figure_2_has_a_plain_layer_for_each_inference_size():
    layers = layers_of("inference_size", arguments())
    sizes = {layer.width for layer in layers if layer.kind == "ff"}
    trees = [layer for layer in layers if layer.kind == "fff"]
    assert {(layer.block, layer.depth) for layer in trees} == {
        (leaf, depth) for leaf in (2, 4, 6, 8, 16, 32) for depth in (2, 6)
    }
    assert sizes == {layer.build(5, 3).inference_size for layer in trees}


def test_table_2_has_three_layers_of_each_width_and_two_of_them_use_32_neurons():
    layers = layers_of("experts", arguments())
    for width in (64, 128, 256, 512, 1024):
        built = {layer.kind: layer.build(5, 3) for layer in layers if layer.width == width}
        assert {layer.training_width for layer in built.values()} == {width}
        assert built["moe"].inference_width == built["fff"].inference_width == 32


def test_table_3_tries_every_weight_of_the_hardening_loss():
    runs = plan_runs("vit", arguments())
    assert sum(run.layer.kind == "ff" for run in runs) == 1
    assert {(run.layer.block, run.layer.hardening) for run in runs if run.layer.kind == "fff"} == {
        (leaf, h) for leaf in (32, 16, 8, 4, 2, 1) for h in (0.1, 5.0, 10.0, math.inf)
    }
    model = runs[-1].build(load_images("digits"))
    assert len(model.blocks) == 4 and model.blocks[0].feedforward.inference_size == 8


def test_runs_have_paths_and_settings_of_their_own():
    runs = [run for name in ("widths", "inference_size", "experts", "vit") for run in plan_runs(name, arguments())]
    assert len({run.path for run in runs}) == len(runs)
    assert all(run.settings["seed"] == run.seed for run in runs)
    frozen = next(run for run in runs if run.layer.hardening == math.inf)
    assert frozen.settings["layer"]["hardening"] == "inf" and frozen.settings["vit"]["patch_size"] == 4


def test_a_run_makes_its_network_from_its_seed():
    runs = plan_runs("widths", arguments("widths", training=Recipe(epochs=1, patience=1), runs=2))
    images = load_images("digits")
    tree = next(run for run in runs if run.layer.name == "fff-w32-l8-h3")
    first, again, other = (run.make(images, "cpu", lambda: None) for run in (tree, tree, runs[runs.index(tree) + 1]))
    assert first == again and first["history"] != other["history"]
    assert first["run"] == "widths, fff-w32-l8-h3, seed 0"
    assert first["sizes"] == dict(training_width=32, training_size=35, inference_width=8, inference_size=10)
    assert isinstance(tree.build(images), nn.Sequential)


@pytest.mark.parametrize(
    ("section", "options", "message"),
    [
        ("widths", {"leaf_sizes": [8, 3]}, r"widths.leaf_sizes has 3; the training width 16 should be that times"),
        ("widths", {"leaf_sizes": [32]}, r"widths.leaf_sizes has 32; the training width 16"),
        ("widths", {"widths": []}, r"widths.widths is empty"),
        ("widths", {"runs": 0}, r"widths.runs has 0; it should be at least 1"),
        ("widths", {"hardening": -1.0}, r"widths.hardening has -1.0"),
        ("inference_size", {"depths": [-1]}, r"inference_size.depths has -1"),
        ("inference_size", {"depths": [31]}, r"inference_size.depths has 31; it should be from 0 to 30"),
        ("experts", {"widths": [16]}, r"experts.widths holds 16; it should be that of k = 2 or more experts"),
        ("experts", {"leaf_size": 24}, r"experts.leaf_size has 24"),
        ("vit", {"heads": 3}, r"vit.heads is 3; it should divide vit.hidden_size, 128"),
        ("vit", {"dropout": 1.5}, r"vit.dropout has 1.5; it should be from 0 to 1"),
    ],
)
def test_sizes_that_do_not_fit_are_named(section, options, message):
    with pytest.raises(UserError, match=message):
        plan_runs(section, arguments(section, **options))


def test_recipes_are_checked():
    with pytest.raises(ValueError, match="training.batch_size is 0"):
        Recipe(batch_size=0)
