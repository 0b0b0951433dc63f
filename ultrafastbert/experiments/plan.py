"""Which layers each experiment compares, as runs that can be made one by one, in any order and in any process."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from ultrafastbert.experiments.arguments import CompareArguments, Recipe, VitArguments
from ultrafastbert.experiments.candidates import Layer
from ultrafastbert.experiments.images import Images, split_images
from ultrafastbert.experiments.training import augment_images, train
from ultrafastbert.experiments.vit import VisionTransformer
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.sizes import MAX_DEPTH

SIZES = ("training_width", "training_size", "inference_width", "inference_size")


@dataclass(frozen=True)
class Run:
    """One training of one layer, alone or inside a vision transformer."""

    experiment: str
    layer: Layer
    seed: int
    recipe: Recipe
    transformer: VitArguments | None = None

    def __str__(self) -> str:
        return f"{self.experiment}, {self.layer.name}, seed {self.seed}"

    @property
    def path(self) -> Path:
        """Of its result, in the output directory."""
        return Path("runs") / self.experiment / f"{self.layer.name}-seed-{self.seed}.json"

    @property
    def settings(self) -> dict:
        """All that its result depends on but the images."""
        layer = asdict(self.layer)
        if math.isinf(self.layer.hardening):  # for which JSON has no word
            layer["hardening"] = "inf"
        settings = {"seed": self.seed, "layer": layer, "training": asdict(self.recipe)}
        if self.transformer is not None:
            names = ("hidden_size", "depth", "heads", "patch_size", "dropout", "augment")
            settings["vit"] = {name: getattr(self.transformer, name) for name in names}
        return settings

    def make(self, images: Images, device: str, check: Callable[[], None]) -> dict:
        """Trains the network.

        Returns:
            `run`, its name; `sizes`, the layer's widths and sizes in training and inference, in neurons; and what
            `training.train` returns, which also says what `check` is.
        """
        torch.manual_seed(self.seed)
        model = self.build(images).to(device)
        data = {name: (x.to(device), y.to(device)) for name, (x, y) in split_images(images, self.seed).items()}
        augments = self.transformer is not None and self.transformer.augment
        options = {"augment": augment_images} if augments else {}
        layer = next(module for module in model.modules() if hasattr(module, "inference_size"))
        outcome = train(model, data, self.recipe, self.seed, check=check, **options)
        return {"run": str(self), "sizes": {name: getattr(layer, name) for name in SIZES}} | outcome

    def build(self, images: Images) -> nn.Module:
        """The network with fresh weights: images `(rows, channels, height, width)` -> logits `(rows, classes)`."""
        if self.transformer is None:
            channels, height, width = images.shape
            return nn.Sequential(nn.Flatten(), self.layer.build(channels * height * width, images.classes))
        vit = self.transformer
        return VisionTransformer(
            images.shape,
            images.classes,
            vit.patch_size,
            vit.hidden_size,
            vit.depth,
            vit.heads,
            self.layer.build,
            vit.dropout,
        )


def plan_runs(experiment: str, arguments: CompareArguments) -> list[Run]:
    """The runs of an experiment, those of a layer one after another.

    Raises:
        UserError: sizes that do not fit; the message names the option.
    """
    section = getattr(arguments, experiment)
    _check_counts(experiment, section)
    transformer = section if experiment == "vit" else None
    layers = {"widths": _widths, "inference_size": _inference_size, "experts": _experts, "vit": _vit}[experiment]
    return [
        Run(experiment, layer, seed, section.training, transformer)
        for layer in dict.fromkeys(layers(section))
        for seed in range(section.runs)
    ]


def _widths(section) -> list[Layer]:
    trees = [
        _tree("widths.leaf_sizes", width, leaf, section.hardening)
        for leaf in section.leaf_sizes
        for width in section.widths
    ]
    return [_plain(width) for width in section.widths] + trees


def _inference_size(section) -> list[Layer]:
    trees = [
        Layer("fff", leaf * 2**depth, leaf, section.hardening)
        for depth in section.depths
        for leaf in section.leaf_sizes
    ]
    return [_plain(size) for size in sorted({tree.block + tree.depth for tree in trees})] + trees


def _experts(section) -> list[Layer]:
    layers = []
    for width in section.widths:
        if width % section.expert_size or width // section.expert_size < section.k:
            raise UserError(
                f"experts.widths holds {width}; it should be that of k = {section.k} or more experts of"
                f" experts.expert_size, {section.expert_size}"
            )
        tree = _tree("experts.leaf_size", width, section.leaf_size, section.hardening)
        layers += [_plain(width), Layer("moe", width, section.expert_size, k=section.k), tree]
    return layers


def _vit(section) -> list[Layer]:
    if section.hidden_size % section.heads:
        raise UserError(f"vit.heads is {section.heads}; it should divide vit.hidden_size, {section.hidden_size}")
    trees = [
        _tree("vit.leaf_sizes", section.width, leaf, hardening)
        for leaf in section.leaf_sizes
        for hardening in section.hardenings
    ]
    return [_plain(section.width), *trees]


def _plain(width: int) -> Layer:
    return Layer("ff", width, width)


def _tree(option: str, width: int, leaf: int, hardening: float) -> Layer:
    leaves = width // leaf
    if leaves < 1 or width % leaf or leaves & (leaves - 1):
        raise UserError(f"{option} has {leaf}; the training width {width} should be that times a power of 2")
    return Layer("fff", width, leaf, hardening)


def _check_counts(experiment: str, section) -> None:
    """Finds numbers that are no sizes before anything is divided by them."""
    for name, value in asdict(section).items():
        if value == []:
            raise UserError(f"{experiment}.{name} is empty; it should have at least one entry")
        least = 0 if name in ("depths", "hardening", "hardenings", "dropout") else 1
        most = {"depths": MAX_DEPTH, "dropout": 1}.get(name, math.inf)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool) and not least <= number <= most:
                limits = f"at least {least}" if most == math.inf else f"from {least} to {most}"
                raise UserError(f"{experiment}.{name} has {number}; it should be {limits}")
