"""Options of distillation. The docstrings of the fields are the `--help` of the command."""

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ultrafastbert.utils.sizes import DenseSize, Size, parse_size
from ultrafastbert.utils.validation import (
    FRACTION,
    NOT_EMPTY,
    NOT_NEGATIVE,
    POSITIVE,
    at_least,
    check,
    check_fields,
    integer,
)

KEPT = "dense"
"""The size of a layer that stays as it is."""


@dataclass
class TextArguments:
    """Texts that the student learns from; they need no labels."""

    source: str | list[str] = "docstrings"
    """Texts such as the encoder will see, one or several of: a file or glob (.txt, a text in each line, .jsonl,
    .parquet, each also with .gz, .xz or .zst), the name of a data set on the Hugging Face Hub, or `docstrings`
    (English prose from the installed Python packages, no download)."""
    text_column: str = "text"
    """Field of .jsonl files, column of .parquet files and of Hub data sets that holds the text."""
    max_length: int = 128
    """Texts with more tokens are cut into several sequences. [tokens]"""
    max_tokens: int = 20_000_000
    """Stop reading after this many tokens. [tokens]"""
    validation_sequences: int = 512
    """Sequences held out to compare student and teacher on. [sequences]"""

    def __post_init__(self):
        check_fields(self, NOT_EMPTY, "source", "text_column", section="data")
        check_fields(self, at_least(3), "max_length", section="data")
        check_fields(self, POSITIVE, "max_tokens", "validation_sequences", section="data")


@dataclass
class FitArguments:
    """The regression that each layer starts from."""

    tokens: int = 200_000
    """Tokens whose inputs of all layers are recorded, in a temporary file in output_dir (2 bytes a token, layer and
    column of the width). [tokens]"""
    steps: int = 1000
    """Steps of Adam for each layer; 0 starts from factors and biases alone."""
    batch_size: int = 1024
    """Tokens in a step. [tokens]"""
    lr: float = 3e-3
    """Adam's learning rate at its peak."""

    def __post_init__(self):
        check_fields(self, POSITIVE, "tokens", "batch_size", "lr", section="fit")
        check("fit.steps", self.steps, integer(0))


@dataclass
class TrainArguments:
    """The training of the whole student. It ends when the first of the given budgets is spent."""

    max_steps: int | None = None
    """Budget of optimiser steps. [steps; null: no such budget]"""
    batch_size: int = 64
    """Sequences in a step, of similar lengths. [sequences]"""
    lr: float = 5e-4
    """AdamW's learning rate at its peak; it rises from zero and falls to zero. Embeddings are not trained."""
    lr_peak: float = 0.1
    """Where it peaks. [fraction of the training, 0 to 1]"""
    weight_decay: float = 0.01
    """Weight decay; norms, biases and factors have none."""
    max_grad_norm: float = 1.0
    """Gradients with a larger norm are scaled down to this norm."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of forward and backward passes. auto: bf16 where it is faster, else fp32."""
    log_every: int = 20
    """Interval of training metrics. [steps]"""
    eval_every: int = 200
    """Interval of validation; there is always one at the end. [steps]"""
    checkpoint_every: int = 500
    """Interval of checkpoints; there is always one at the end, and one after the regression. [steps]"""
    keep_checkpoints: int = 2
    """Number of checkpoints to keep, the newest ones."""
    max_skipped_steps: int = 20
    """Training stops after this many steps in a row whose loss or gradient is not finite; such steps are skipped.
    [steps]"""

    def __post_init__(self):
        names = ("max_steps", "batch_size", "lr", "max_grad_norm", "log_every", "eval_every", "checkpoint_every")
        check_fields(self, POSITIVE, *names, "keep_checkpoints", "max_skipped_steps", section="train")
        check_fields(self, FRACTION, "lr_peak", section="train")
        check_fields(self, NOT_NEGATIVE, "weight_decay", section="train")


@dataclass
class DistillArguments:
    """Distillation: an encoder of the BERT family, or of this package, with trees in place of its dense layers."""

    model: str = ""
    """Directory or Hub id of the encoder: one of this package with dense layers, or one that `ultrafastbert convert`
    takes."""
    fff: str = "1x7x32"
    """Size of the feedforward layers: TREESxDEPTH, 1xDEPTHxLEAF, dense-NEURONS, none, or dense for a layer that stays
    as it is; for all layers, or by layer, from 0, as in 0:dense,1-4:1x7x32,5:1x11."""
    pooling: Literal["auto", "mean", "cls", "none"] = "auto"
    """How hidden states become the sentence vectors that are compared. auto: as the model's sentence-transformers
    files say, none if it has no such files."""
    data: TextArguments = field(default_factory=TextArguments)
    """Texts"""
    fit: FitArguments = field(default_factory=FitArguments)
    """Regression of each layer"""
    train: TrainArguments = field(default_factory=TrainArguments)
    """Training of the student"""
    budget_hours: float | None = None
    """Budget of wall-clock time, the regression included, over all resumed runs. [hours; null: no such budget]"""
    output_dir: str = "out/distill"
    """Directory of the run: final/ (model and tokenizer), checkpoints/, metrics.jsonl, config.yaml."""
    seed: int = 0
    """Seed of initialisation and data order."""
    resume: str = "auto"
    """auto: resume from the newest complete checkpoint in output_dir, if there is one; never: start again, after
    moving aside the files of an earlier run in output_dir; or the path of a checkpoint, or of a run's directory, to
    resume from."""

    def __post_init__(self):
        check_fields(self, NOT_EMPTY, "model", "output_dir", "resume")
        check_fields(self, POSITIVE, "budget_hours")
        check("seed", self.seed, integer(0, 2**31 - 1))
        if self.budget_hours is None and self.train.max_steps is None:
            raise ValueError("no budget is given; set budget_hours or train.max_steps")
        read_sizes(self.fff)

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON and YAML have them."""
        return json.loads(json.dumps(asdict(self)))


def read_sizes(text: str) -> list[tuple[int | None, int | None, str]]:
    """Reads `SIZE` or `FIRST-LAST:SIZE,LAYER:SIZE,...`: first and last layer, None for all layers, and the size.

    Raises:
        ValueError: another text; the message says which part.
    """
    if ":" not in text:
        _check_size(text)
        return [(None, None, text)]
    parts = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?:(\S+)", part.strip())
        if match is None:
            expected = "LAYER:SIZE or FIRST-LAST:SIZE, as in 1-4:1x7x32"
            raise ValueError(f"fff has the part {part!r}; it should be {expected}")
        _check_size(match[3])
        parts.append((int(match[1]), int(match[2] or match[1]), match[3]))
    return parts


def _check_size(text: str) -> None:
    if text != KEPT:
        parse_size(text, "fff")


def sizes_by_layer(text: str, dense: list[Size]) -> list[str]:
    """The size of each layer of the student, for the option `fff`.

    Args:
        text: as `read_sizes` reads it.
        dense: sizes of the teacher's layers.

    Raises:
        ValueError: a layer has no size, or two, or does not exist.
    """
    found: dict[int, str] = {}
    for first, last, size in read_sizes(text):
        layers = range(len(dense)) if first is None or last is None else range(first, last + 1)
        for layer in layers:
            if layer >= len(dense) or layer in found:
                problem = "two sizes" if layer in found else f"a size; layers are 0 to {len(dense) - 1}"
                raise ValueError(f"fff is {text!r}, in which layer {layer} has {problem}")
            found[layer] = str(dense[layer]) if size == KEPT else size
    if missing := [layer for layer in range(len(dense)) if layer not in found]:
        raise ValueError(f"fff is {text!r}, in which layers {', '.join(map(str, missing))} have no size")
    return [found[layer] for layer in range(len(dense))]


def check_teacher_sizes(sizes: list[Size]) -> None:
    """Raises a ValueError unless all feedforward layers are dense."""
    for layer, size in enumerate(sizes):
        if not isinstance(size, DenseSize):
            raise ValueError(f"layer {layer} is {size}; a model whose feedforward layers are all dense is needed")
