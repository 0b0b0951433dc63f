"""The layers that each experiment compares, as trainings that can run in any order and in any process."""

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import nn

from ultrafastbert.experiments import arguments as sections
from ultrafastbert.experiments.candidates import Candidate
from ultrafastbert.experiments.images import Images, split_images
from ultrafastbert.experiments.training import augment_images, train_classifier
from ultrafastbert.experiments.vit import VisionTransformer
from ultrafastbert.layers.blocks import BlockLayer

SIZES = ("training_width", "training_size", "inference_width", "inference_size")
Section = (
    sections.WidthsArguments | sections.InferenceSizeArguments | sections.ExpertsArguments | sections.VitArguments
)


@dataclass(frozen=True)
class LayerTraining:
    """A training of one layer, alone or in a vision transformer.

    Attributes:
        layer: what is trained.
        seed: determines the weights, the validation images and the order of images.
        arguments: how it is trained.
        transformer: the vision transformer; None to train the layer alone.
    """

    layer: Candidate
    seed: int
    arguments: sections.LayerTrainingArguments
    transformer: sections.VitArguments | None = None

    threads: ClassVar[int] = 1
    """One, so that results do not depend on the number of processes."""

    @property
    def file(self) -> str:
        """The path of the result in the directory of the experiment's results."""
        return f"{self.layer.name}-seed-{self.seed}.json"

    def settings(self, images: Images, device: str) -> dict:
        """Everything that the result depends on, as JSON types."""
        layer = asdict(self.layer)
        if math.isinf(self.layer.hardening):  # JSON has no infinity
            layer["hardening"] = "inf"
        settings = {"dataset": images.name, "dataset_fingerprint": images.fingerprint, "device": device}
        settings |= {"seed": self.seed, "layer": layer, "training": asdict(self.arguments)}
        if self.transformer is not None:
            names = ("hidden_size", "depth", "heads", "patch_size", "dropout", "augment")
            settings["vit"] = {name: getattr(self.transformer, name) for name in names}
        return settings

    def measure(self, images: Images, device: str, check: Callable[[], None]) -> dict:
        """Trains the network.

        Returns:
            `sizes`, the layer's widths and sizes in training and inference, in neurons, and what
            `training.train_classifier` returns, which also describes `check`.
        """
        torch.manual_seed(self.seed)
        model = self.build(images).to(device)
        data = {name: (x.to(device), y.to(device)) for name, (x, y) in split_images(images, self.seed).items()}
        augments = self.transformer is not None and self.transformer.augment
        options = {"augment": augment_images} if augments else {}
        layer = next(module for module in model.modules() if isinstance(module, BlockLayer))
        outcome = train_classifier(model, data, self.arguments, self.seed, check=check, **options)
        return {"sizes": {name: getattr(layer, name) for name in SIZES}} | outcome

    def build(self, images: Images) -> nn.Module:
        """The network with new random weights: `(images, channels, height, width)` -> logits `(images, classes)`."""
        vit = self.transformer
        if vit is None:
            return nn.Sequential(nn.Flatten(), self.layer.build(math.prod(images.shape), images.classes))
        sizes = (vit.patch_size, vit.hidden_size, vit.depth, vit.heads)
        return VisionTransformer(images.shape, images.classes, *sizes, self.layer.build, vit.dropout)


def plan_widths(section: sections.WidthsArguments) -> list[LayerTraining]:
    """A plain layer of each width, and trees of each leaf size and width."""
    layers = [Candidate("ff", width, width) for width in section.widths]
    for leaf in section.leaf_sizes:
        layers += [Candidate("fff", width, leaf, section.hardening) for width in section.widths]
    return _trainings(layers, section)


def plan_inference_size(section: sections.InferenceSizeArguments) -> list[LayerTraining]:
    """Trees of each depth and leaf size, and plain layers of their inference sizes."""
    trees = []
    for depth in section.depths:
        trees += [Candidate("fff", leaf * 2**depth, leaf, section.hardening) for leaf in section.leaf_sizes]
    plain = [Candidate("ff", size, size) for size in sorted({tree.block + tree.depth for tree in trees})]
    return _trainings(plain + trees, section)


def plan_experts(section: sections.ExpertsArguments) -> list[LayerTraining]:
    """A plain layer, a mixture of experts and a tree of each width."""
    layers = []
    for width in section.widths:
        layers += [Candidate("ff", width, width), Candidate("moe", width, section.expert_size, k=section.k)]
        layers += [Candidate("fff", width, section.leaf_size, section.hardening)]
    return _trainings(layers, section)


def plan_vit(section: sections.VitArguments) -> list[LayerTraining]:
    """A plain layer, and trees of each leaf size and weight of the hardening loss, in a vision transformer."""
    layers = [Candidate("ff", section.width, section.width)]
    for leaf in section.leaf_sizes:
        layers += [Candidate("fff", section.width, leaf, hardening) for hardening in section.hardenings]
    return _trainings(layers, section)


def _trainings(layers: list[Candidate], section: Section) -> list[LayerTraining]:
    """The trainings of each layer with each seed, those of a layer one after another."""
    vit = section if isinstance(section, sections.VitArguments) else None
    pairs = itertools.product(dict.fromkeys(layers), range(section.runs))
    return [LayerTraining(layer, seed, section.training, vit) for layer, seed in pairs]
