import math

import pytest
from torch import nn

from ultrafastbert.experiments.arguments import (
    CompareArguments,
    ExpertsArguments,
    InferenceSizeArguments,
    LayerTrainingArguments,
    TimingArguments,
    VitArguments,
    WidthsArguments,
)
from ultrafastbert.experiments.compare import EXPERIMENTS
from ultrafastbert.experiments.images import load_images
from ultrafastbert.experiments.plan import plan_experts, plan_inference_size, plan_vit, plan_widths


def layers_of(plan):
    return list(dict.fromkeys(training.layer for training in plan))


def test_table_1_has_every_width_with_every_leaf_size():
    layers = layers_of(plan_widths(WidthsArguments()))
    assert [layer.width for layer in layers if layer.kind == "ff"] == [16, 32, 64, 128]
    trees = {(layer.width, layer.block): layer.depth for layer in layers if layer.kind == "fff"}
    assert len(trees) == 16 and all(leaf * 2**depth == width for (width, leaf), depth in trees.items())
    assert {layer.hardening for layer in layers if layer.kind == "fff"} == {3.0}


def test_figure_2_has_a_plain_layer_for_each_inference_size():
    layers = layers_of(plan_inference_size(InferenceSizeArguments()))
    sizes = {layer.width for layer in layers if layer.kind == "ff"}
    trees = [layer for layer in layers if layer.kind == "fff"]
    assert {(layer.block, layer.depth) for layer in trees} == {
        (leaf, depth) for leaf in (2, 4, 6, 8, 16, 32) for depth in (2, 6)
    }
    assert sizes == {layer.build(5, 3).inference_size for layer in trees}


def test_table_2_has_three_layers_of_each_width_and_two_of_them_use_32_neurons():
    layers = layers_of(plan_experts(ExpertsArguments()))
    for width in (64, 128, 256, 512, 1024):
        built = {layer.kind: layer.build(5, 3) for layer in layers if layer.width == width}
        assert {layer.training_width for layer in built.values()} == {width}
        assert built["moe"].inference_width == built["fff"].inference_width == 32


def test_table_3_tries_every_weight_of_the_hardening_loss():
    plan = plan_vit(VitArguments())
    assert sum(training.layer.kind == "ff" for training in plan) == 1
    trees = {(training.layer.block, training.layer.hardening) for training in plan if training.layer.kind == "fff"}
    assert trees == {(leaf, h) for leaf in (32, 16, 8, 4, 2, 1) for h in (0.1, 5.0, 10.0, math.inf)}
    model = plan[-1].build(load_images("digits"))
    assert len(model.layers) == 4 and model.layers[0].feedforward.inference_size == 8


def test_files_are_unique_and_settings_complete():
    images = load_images("digits")
    for name, experiment in EXPERIMENTS.items():
        plan = experiment.plan(getattr(CompareArguments(), name))
        assert len({measurement.file for measurement in plan}) == len(plan)
        settings = [measurement.settings(images, "cpu") for measurement in plan]
        assert len({str(setting) for setting in settings}) == len(plan)
        assert all(setting["device"] == "cpu" for setting in settings)
    frozen = next(training for training in plan_vit(VitArguments()) if training.layer.hardening == math.inf)
    settings = frozen.settings(images, "cpu")
    assert settings["layer"]["hardening"] == "inf" and settings["vit"]["patch_size"] == 4
    assert settings["seed"] == frozen.seed and settings["dataset_fingerprint"] == images.fingerprint


def test_the_seed_of_a_training_determines_its_network():
    plan = plan_widths(WidthsArguments(runs=2, training=LayerTrainingArguments(epochs=1, patience=1)))
    images = load_images("digits")
    tree = next(training for training in plan if training.layer.name == "fff-w32-l8-h3")
    other_seed = plan[plan.index(tree) + 1]
    first, again, other = (training.measure(images, "cpu", lambda: None) for training in (tree, tree, other_seed))
    assert first == again and first["history"] != other["history"]
    assert tree.file == "fff-w32-l8-h3-seed-0.json" and other_seed.file == "fff-w32-l8-h3-seed-1.json"
    assert first["sizes"] == dict(training_width=32, training_size=35, inference_width=8, inference_size=10)
    assert isinstance(tree.build(images), nn.Sequential)


@pytest.mark.parametrize(
    ("section", "options", "message"),
    [
        (
            WidthsArguments,
            {"leaf_sizes": [8, 3]},
            r"widths.leaf_sizes is \[8, 3\]; it should be at least one value, each the training width 16 divided by a",
        ),
        (WidthsArguments, {"leaf_sizes": [32]}, r"widths.leaf_sizes is \[32\]; .* the training width 16"),
        (WidthsArguments, {"widths": []}, r"widths.widths is \[\]; it should be at least one value, each at least 1"),
        (WidthsArguments, {"runs": 0}, r"widths.runs is 0; it should be at least 1"),
        (WidthsArguments, {"hardening": -1.0}, r"widths.hardening is -1.0; it should be at least 0"),
        (InferenceSizeArguments, {"depths": [-1]}, r"inference_size.depths is \[-1\]"),
        (InferenceSizeArguments, {"depths": [31]}, r"inference_size.depths is \[31\]; it should be .* from 0 to 30"),
        (
            ExpertsArguments,
            {"widths": [16], "leaf_size": 16},
            r"experts.widths is \[16\]; .* each a multiple of experts.expert_size, 16, for at least 2 experts",
        ),
        (ExpertsArguments, {"leaf_size": 24}, r"experts.leaf_size is 24; it should be the training width 64 divided"),
        (VitArguments, {"heads": 3}, r"vit.heads is 3; it should be a divisor of vit.hidden_size, 128"),
        (VitArguments, {"dropout": 1.5}, r"vit.dropout is 1.5; it should be from 0 to 1"),
        (VitArguments, {"leaf_sizes": [3]}, r"vit.leaf_sizes is \[3\]; .* the training width 128"),
        (VitArguments, {"hardenings": [1.0, -1.0]}, r"vit.hardenings is \[1.0, -1.0\]; .* each at least 0"),
        (TimingArguments, {"threads": 0}, r"timing.threads is 0; it should be at least 1"),
        (LayerTrainingArguments, {"batch_size": 0}, r"training.batch_size is 0; it should be at least 1"),
        (LayerTrainingArguments, {"lr": 0.0}, r"training.lr is 0.0; it should be greater than 0"),
        (LayerTrainingArguments, {"plateau": 0}, r"training.plateau is 0; it should be at least 1"),
        (CompareArguments, {"workers": 0}, r"workers is 0; it should be at least 1"),
    ],
)
def test_options_that_do_not_fit_are_named(section, options, message):
    with pytest.raises(ValueError, match=message):
        section(**options)
