"""The options of `ultrafastbert compare`, a section for each experiment.

Defaults are those of the paper (arXiv 2308.14711) where it states them and two cores can compute them on digits; the
help texts say where they differ.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from ultrafastbert.utils.sizes import MAX_DEPTH
from ultrafastbert.utils.validation import FRACTION, NOT_EMPTY, POSITIVE, Rule, at_least, between, check, check_fields

RULES = {"lr": POSITIVE, "seconds": POSITIVE, "dropout": FRACTION, "depths": between(0, MAX_DEPTH)}
RULES |= {"hardening": at_least(0), "hardenings": at_least(0)}
"""The rules of options that may be less than 1."""


def _each(rule: Rule) -> Rule:
    expected = f"at least one value, each {rule.expected}"
    return Rule(lambda values: len(values) > 0 and all(map(rule.holds, values)), expected)


def _leaf_size_of(width: int) -> Rule:
    """The leaf sizes of trees of this training width, whose number of leaves is a power of 2."""
    expected = f"the training width {width} divided by a power of 2"
    return Rule(lambda leaf: width % leaf == 0 and (width // leaf).bit_count() == 1, expected)


def _check_numbers(section: str, arguments: object) -> None:
    """Checks all numbers, and lists of numbers, of a section."""
    for name, value in vars(arguments).items():
        rule = RULES.get(name, at_least(1))
        if isinstance(value, list):
            check(f"{section}.{name}", value, _each(rule))
        elif type(value) in (int, float):
            check(f"{section}.{name}", value, rule)


@dataclass
class LayerTrainingArguments:
    """How a network is trained."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimiser; SGD has no momentum."""
    lr: float = 0.2
    """Learning rate."""
    batch_size: int = 256
    """Images in a step. [images]"""
    epochs: int = 1000
    """Maximum number of epochs. [epochs]"""
    patience: int = 100
    """Stop after this many epochs without a better training or validation accuracy. [epochs]"""
    plateau: int | None = None
    """Halve the learning rate after this many epochs without a better accuracy. [epochs; null: never]"""
    plateau_of: Literal["train", "validation"] = "train"
    """The accuracy that plateau watches."""

    def __post_init__(self):
        _check_numbers("training", self)


@dataclass
class WidthsArguments:
    """Accuracy against training width and leaf size: Table 1 of the paper."""

    widths: list[int] = field(default_factory=lambda: [16, 32, 64, 128])
    """Training widths of all layers. [neurons]"""
    leaf_sizes: list[int] = field(default_factory=lambda: [8, 4, 2, 1])
    """Leaf sizes of the trees, whose depth is log2(width / leaf size). [neurons]"""
    hardening: float = 3.0
    """Weight of the hardening loss."""
    runs: int = 5
    """Trainings of each layer, with different seeds; 10 in the paper. [trainings]"""
    training: LayerTrainingArguments = field(default_factory=LayerTrainingArguments)
    """Training"""

    def __post_init__(self):
        _check_numbers("widths", self)
        for width in self.widths:
            check("widths.leaf_sizes", self.leaf_sizes, _each(_leaf_size_of(width)))


@dataclass
class InferenceSizeArguments:
    """Accuracy against the number of neurons used in inference: Figure 2 of the paper."""

    leaf_sizes: list[int] = field(default_factory=lambda: [2, 4, 6, 8, 16, 32])
    """Leaf sizes of the trees. [neurons]"""
    depths: list[int] = field(default_factory=lambda: [2, 6])
    """Depths of the trees; a plain layer of each leaf size + depth is trained too. [levels]"""
    hardening: float = 0.0
    """Weight of the hardening loss."""
    runs: int = 3
    """Trainings of each layer, with different seeds; 10 in the paper. [trainings]"""
    training: LayerTrainingArguments = field(default_factory=LayerTrainingArguments)
    """Training"""

    def __post_init__(self):
        _check_numbers("inference_size", self)


@dataclass
class ExpertsArguments:
    """Trees and mixtures of experts of the same training widths: Table 2 of the paper."""

    widths: list[int] = field(default_factory=lambda: [64, 128, 256, 512, 1024])
    """Training widths of all layers. [neurons]"""
    leaf_size: int = 32
    """Leaf size of the trees. [neurons]"""
    expert_size: int = 16
    """Size of an expert. [neurons]"""
    k: int = 2
    """Experts that an input uses. [experts]"""
    hardening: float = 3.0
    """Weight of the hardening loss."""
    runs: int = 2
    """Trainings of each layer, with different seeds; the paper does not state its number. [trainings]"""
    training: LayerTrainingArguments = field(
        default_factory=lambda: LayerTrainingArguments("adam", 0.001, 4096, epochs=7000, patience=350, plateau=250)
    )
    """Training"""

    def __post_init__(self):
        _check_numbers("experts", self)
        for width in self.widths:
            check("experts.leaf_size", self.leaf_size, _leaf_size_of(width))
        mixture = Rule(
            lambda width: width % self.expert_size == 0 and width // self.expert_size >= self.k,
            f"a multiple of experts.expert_size, {self.expert_size}, for at least {self.k} experts (experts.k)",
        )
        check("experts.widths", self.widths, _each(mixture))


@dataclass
class VitArguments:
    """Trees as the feedforward layers of a vision transformer: Table 3 of the paper."""

    width: int = 128
    """Training width of the feedforward layers. [neurons]"""
    leaf_sizes: list[int] = field(default_factory=lambda: [32, 16, 8, 4, 2, 1])
    """Leaf sizes of the trees. [neurons]"""
    hardenings: list[float] = field(default_factory=lambda: [0.1, 5.0, 10.0, math.inf])
    """Weights of the hardening loss, all of which are tried; .inf freezes the decisions of the tree. The last three
    are from the text of the paper, the first from the caption of its Figure 6."""
    hidden_size: int = 128
    """Width of the transformer."""
    depth: int = 4
    """Number of transformer layers. [layers]"""
    heads: int = 4
    """Attention heads; the paper does not state its number. [heads]"""
    patch_size: int = 4
    """Side of a patch. [pixels]"""
    dropout: float = 0.1
    """Dropout probability of the transformer's input. [0 to 1]"""
    augment: bool = False
    """Flip, rotate, shift and scale the training images at random, as the paper does; its images are not digits."""
    runs: int = 1
    """Trainings of each layer and weight of the hardening loss. [trainings]"""
    training: LayerTrainingArguments = field(
        default_factory=lambda: LayerTrainingArguments(
            "adam", 4e-4, 64, epochs=100, patience=40, plateau=20, plateau_of="validation"
        )
    )
    """Training; the paper has a plateau of 50 epochs, and states neither batch size nor number of epochs."""

    def __post_init__(self):
        _check_numbers("vit", self)
        check("vit.leaf_sizes", self.leaf_sizes, _each(_leaf_size_of(self.width)))
        expected = f"a divisor of vit.hidden_size, {self.hidden_size}"
        check("vit.heads", self.heads, Rule(lambda heads: self.hidden_size % heads == 0, expected))


@dataclass
class TimingArguments:
    """Time of a forward pass against the number of leaves and experts: Figures 3 and 4 of the paper."""

    blocks: list[int] = field(default_factory=lambda: [2**power for power in range(1, 13)])
    """Numbers of leaves and experts, powers of 2; up to 32,768 in the paper. [blocks]"""
    feedforward_blocks: int = 32
    """Time a plain layer as wide as all leaves together up to this number of leaves. [blocks]"""
    block_size: int = 32
    """Size of a leaf and of an expert, of which an input uses one. [neurons]"""
    hidden_size: int = 768
    """Width of input and output."""
    batch_sizes: list[int] = field(default_factory=lambda: [1, 256])
    """Inputs in a call; 256 in the paper. [inputs]"""
    threads: int = 1
    """Threads of PyTorch on the CPU. [threads]"""
    seconds: float = 1.0
    """How long each layer is timed. [seconds]"""

    def __post_init__(self):
        _check_numbers("timing", self)
        check("timing.blocks", self.blocks, _each(Rule(lambda blocks: blocks.bit_count() == 1, "a power of 2")))


@dataclass
class CompareArguments:
    """What is compared, on which images."""

    experiment: Literal["widths", "inference_size", "experts", "vit", "timing", "all"] = "all"
    """The experiment to run, one of the sections below."""
    dataset: Literal["digits", "usps", "mnist", "fashion_mnist", "svhn", "cifar10", "cifar100"] = "digits"
    """The images: scikit-learn's digits, or a data set that is downloaded from the Hub."""
    output_dir: str = "out/compare"
    """Directory of results, tables and figures; trainings with a result there are not repeated."""
    workers: int | None = None
    """Number of processes that train, each on one thread. [null: one for each core; one on cuda]"""
    device: Literal["cpu", "cuda"] = "cpu"
    """The device that networks are trained and timed on."""
    widths: WidthsArguments = field(default_factory=WidthsArguments)
    """Accuracy against training width and leaf size (Table 1)"""
    inference_size: InferenceSizeArguments = field(default_factory=InferenceSizeArguments)
    """Accuracy against the number of neurons used in inference (Figure 2)"""
    experts: ExpertsArguments = field(default_factory=ExpertsArguments)
    """Trees and mixtures of experts (Table 2)"""
    vit: VitArguments = field(default_factory=VitArguments)
    """Trees in a vision transformer (Table 3)"""
    timing: TimingArguments = field(default_factory=TimingArguments)
    """Time against the number of blocks (Figures 3 and 4)"""

    def __post_init__(self):
        check_fields(self, at_least(1), "workers")
        check_fields(self, NOT_EMPTY, "output_dir")
