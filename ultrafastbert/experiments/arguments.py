"""The options of scripts/compare_layers.py: a section for each experiment.

Defaults are the paper's (arXiv 2308.14711) where it states them and two cores manage them on digits; docstrings say
where they differ.
"""

import math
import os
from dataclasses import dataclass, field
from typing import Literal

EXPERIMENTS = ("widths", "inference_size", "experts", "vit", "timing")


@dataclass
class Recipe:
    """How a network is trained."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """SGD has no momentum."""
    lr: float = 0.2
    """Learning rate."""
    batch_size: int = 256
    """Images a step. [images]"""
    epochs: int = 1000
    """The most that a run gets. [epochs]"""
    patience: int = 100
    """A run ends after so many without a better accuracy in training or in validation. [epochs]"""
    plateau: int | None = None
    """The learning rate is halved after so many without a better accuracy. [epochs; null: never]"""
    plateau_of: Literal["train", "validation"] = "train"
    """Which accuracy that is."""

    def __post_init__(self):
        for name in ("lr", "batch_size", "epochs", "patience"):
            if not getattr(self, name) > 0:
                raise ValueError(f"training.{name} is {getattr(self, name)}; it should be more than 0")


@dataclass
class WidthsArguments:
    """Accuracy against training width and leaf size: the paper's Table 1."""

    widths: list[int] = field(default_factory=lambda: [16, 32, 64, 128])
    """Training widths. [neurons]"""
    leaf_sizes: list[int] = field(default_factory=lambda: [8, 4, 2, 1])
    """Of the trees; their depth is log2(width / leaf size). [neurons]"""
    hardening: float = 3.0
    """Weight of the hardening loss."""
    runs: int = 5
    """Of each layer; 10 in the paper. [runs]"""
    training: Recipe = field(default_factory=Recipe)
    """Training"""


@dataclass
class InferenceSizeArguments:
    """Accuracy against the neurons used for inference: the paper's Figure 2."""

    leaf_sizes: list[int] = field(default_factory=lambda: [2, 4, 6, 8, 16, 32])
    """Of the trees. [neurons]"""
    depths: list[int] = field(default_factory=lambda: [2, 6])
    """Of the trees; a feedforward layer of each leaf size + depth is trained too. [levels]"""
    hardening: float = 0.0
    """Weight of the hardening loss."""
    runs: int = 3
    """Of each layer; 10 in the paper. [runs]"""
    training: Recipe = field(default_factory=Recipe)
    """Training"""


@dataclass
class ExpertsArguments:
    """Trees beside mixtures of experts of the same widths: the paper's Table 2."""

    widths: list[int] = field(default_factory=lambda: [64, 128, 256, 512, 1024])
    """Training widths. [neurons]"""
    leaf_size: int = 32
    """Of the trees. [neurons]"""
    expert_size: int = 16
    """Of the mixtures. [neurons]"""
    k: int = 2
    """Experts mixed. [experts]"""
    hardening: float = 3.0
    """Weight of the hardening loss."""
    runs: int = 2
    """Of each layer; the paper does not say how many. [runs]"""
    training: Recipe = field(
        default_factory=lambda: Recipe("adam", 0.001, 4096, epochs=7000, patience=350, plateau=250)
    )
    """Training"""


@dataclass
class VitArguments:
    """Trees as the feedforward layers of a vision transformer: the paper's Table 3."""

    width: int = 128
    """Training width of the feedforward layers. [neurons]"""
    leaf_sizes: list[int] = field(default_factory=lambda: [32, 16, 8, 4, 2, 1])
    """Of the trees. [neurons]"""
    hardenings: list[float] = field(default_factory=lambda: [0.1, 5.0, 10.0, math.inf])
    """Weights of the hardening loss, each of them tried; .inf is a tree that is not trained. The paper's text has the
    last three, the caption of its Figure 6 the first."""
    hidden_size: int = 128
    """Width of the transformer."""
    depth: int = 4
    """Its blocks. [blocks]"""
    heads: int = 4
    """Of its attention; the paper does not say how many. [heads]"""
    patch_size: int = 4
    """Side of a patch. [pixels]"""
    dropout: float = 0.1
    """Of the transformer's input."""
    augment: bool = False
    """Flip, turn, shift and scale the training images at random, as in the paper, whose images are no digits."""
    runs: int = 1
    """Of each layer and hardening. [runs]"""
    training: Recipe = field(
        default_factory=lambda: Recipe("adam", 4e-4, 64, epochs=100, patience=40, plateau=20, plateau_of="validation")
    )
    """Training; the paper says 50 epochs for the plateau, and not how many images a batch and epochs in all."""


@dataclass
class TimingArguments:
    """Time of a forward pass against the number of leaves and experts: the paper's Figures 3 and 4."""

    blocks: list[int] = field(default_factory=lambda: [2**power for power in range(1, 13)])
    """Leaves and experts, powers of 2; up to 32,768 in the paper."""
    feedforward_blocks: int = 32
    """The feedforward layer is as wide as the leaves together, up to so many of them."""
    block_size: int = 32
    """Of a leaf and an expert, of which one is used. [neurons]"""
    hidden_size: int = 768
    """Width of input and output."""
    batch_sizes: list[int] = field(default_factory=lambda: [1, 256])
    """Inputs in a call; 256 in the paper."""
    threads: int = 1
    """Of PyTorch on the CPU."""
    seconds: float = 1.0
    """How long each layer is timed."""


@dataclass
class CompareArguments:
    """What is compared, on which images."""

    experiment: Literal["widths", "inference_size", "experts", "vit", "timing", "all"] = "all"
    """Which of the experiments below."""
    dataset: Literal["digits", "usps", "mnist", "fashion_mnist", "svhn", "cifar10", "cifar100"] = "digits"
    """Images: scikit-learn's digits, or a data set that is downloaded from the Hub."""
    output_dir: str = "out/compare"
    """Where runs, tables and plots go; what is finished there is not made again."""
    workers: int | None = None
    """Processes that train, each on one thread. [null: as many as cores; one on cuda]"""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where networks are trained and timed."""
    widths: WidthsArguments = field(default_factory=WidthsArguments)
    """Accuracy against training width and leaf size (Table 1)"""
    inference_size: InferenceSizeArguments = field(default_factory=InferenceSizeArguments)
    """Accuracy against the neurons used for inference (Figure 2)"""
    experts: ExpertsArguments = field(default_factory=ExpertsArguments)
    """Trees beside mixtures of experts (Table 2)"""
    vit: VitArguments = field(default_factory=VitArguments)
    """Trees in a vision transformer (Table 3)"""
    timing: TimingArguments = field(default_factory=TimingArguments)
    """Time against the number of blocks (Figures 3 and 4)"""

    def __post_init__(self):
        if self.workers is None:
            self.workers = 1 if self.device == "cuda" else os.cpu_count() or 1
