"""All options of pretraining. The defaults are the cramming recipe (arXiv 2212.14034, sections 4.1 to 4.3)."""

import re
from dataclasses import asdict, dataclass, field
from typing import Literal

from ultrafastbert.configuration_ultrafastbert import UltraFastBertConfig
from ultrafastbert.pretraining.data.arguments import DataArguments


@dataclass
class ModelArguments:
    """The encoder that is pretrained."""

    fff: str = "1x11"
    """Feedforward layers: TREESxDEPTH for fast feedforward trees (1x11, 8x8, 3072x0, ...) or dense-NEURONS for
    ordinary layers (dense-3072)."""
    hidden_size: int = 768
    """Width of the encoder; even, and a multiple of the number of heads."""
    num_hidden_layers: int = 16
    """Transformer layers."""
    num_attention_heads: int = 12
    """Attention heads in each layer."""
    initializer_range: float = 0.02
    """Standard deviation of the first weights of embeddings and linear layers. 0.02 is right for width 768; a narrow
    encoder learns sooner from about 1/sqrt(hidden_size)."""
    dropout: float = 0.0
    """Probability of dropout everywhere in the encoder, during pretraining. [0 to 1]"""

    def __post_init__(self):
        if not re.fullmatch(r"[1-9]\d*x\d+|dense-[1-9]\d*", self.fff):
            raise ValueError(
                f"model.fff is {self.fff!r}; it should be TREESxDEPTH, as in 1x11, or dense-NEURONS, as in dense-3072"
            )

    def build_config(self, vocab_size: int, sequence_length: int) -> UltraFastBertConfig:
        """The model's configuration for data of that many token types and rows of that many tokens.

        Raises:
            huggingface_hub.errors.StrictDataclassError: sizes that do not fit together.
        """
        if self.fff.startswith("dense-"):
            feedforward = {"feedforward": "dense", "intermediate_size": int(self.fff.removeprefix("dense-"))}
        else:
            trees, depth = map(int, self.fff.split("x"))
            feedforward = {"feedforward": "fff", "fff_trees": trees, "fff_depth": depth}
        return UltraFastBertConfig(
            vocab_size=vocab_size,
            max_position_embeddings=sequence_length,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            initializer_range=self.initializer_range,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            **feedforward,
        )


@dataclass
class TrainArguments:
    """How the encoder is pretrained. Training ends when the first of the budgets that are given is spent."""

    budget_hours: float | None = None
    """Budget of wall-clock time spent in training, evaluation and checkpoints included, over all resumed runs.
    [hours; null: no such budget]"""
    max_steps: int | None = None
    """Budget of optimiser steps. [steps; null: no such budget]"""
    max_tokens: int | None = None
    """Budget of tokens seen. [tokens; null: no such budget]"""
    lr: float = 1e-3
    """Learning rate at its peak."""
    lr_peak: float = 0.5
    """Where the triangular one-cycle schedule peaks; it rises from zero and falls to zero. [share of the budget,
    0 to 1]"""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's averaging coefficients of gradients and squared gradients."""
    eps: float = 1e-12
    """AdamW's epsilon."""
    weight_decay: float = 0.01
    """AdamW's weight decay; norms, biases and scales have none."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to at most this norm."""
    batch_size: int = 8192
    """Rows in an optimiser step, over all devices, once the ramp has reached its end; rounded up to whole
    micro-batches. [rows]"""
    micro_batch_size: int = 128
    """Rows in one forward and backward pass on one device; a step accumulates as many passes as it needs. [rows]"""
    batch_ramp: float = 0.6
    """The batch grows linearly from one micro-batch to batch_size until this much of the budget is spent; 0: it has
    its size from the start. [share of the budget, 0 to 1]"""
    mask_probability: float = 0.25
    """How many tokens of each row are to be predicted; the same number in every row. [share of a row, up to 0.5]"""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of forward and backward passes; weights and optimiser are float32. auto: bf16 on a GPU that has
    it, fp32 elsewhere."""
    compile: bool | None = None
    """Whether the model is compiled by torch.compile. [null: on a GPU]"""
    log_every: int = 10
    """Interval of training metrics. [steps]"""
    eval_every: int = 500
    """Interval of validation; there is one at the end in any case. [steps]"""
    eval_sequences: int = 2048
    """Rows of the validation split that are used each time, with the same masks; all if it has fewer. [rows]"""
    checkpoint_every: int = 500
    """Interval of checkpoints; there is one at the end in any case. [steps]"""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept."""
    max_skipped_steps: int = 20
    """Training stops after this many steps in a row whose loss or gradient is not finite; each of them is left out.
    [steps]"""
    trackers: list[str] = field(default_factory=list)
    """Experiment trackers that also get the metrics, by the names that accelerate knows: tensorboard, wandb, ..."""

    def __post_init__(self):
        positive = (
            "lr",
            "eps",
            "max_grad_norm",
            "batch_size",
            "micro_batch_size",
            "mask_probability",
            "eval_sequences",
        )
        intervals = (
            "eval_sequences",
            "log_every",
            "eval_every",
            "checkpoint_every",
            "keep_checkpoints",
            "max_skipped_steps",
        )
        self._check((*self.budgets, *positive, *intervals), lambda value: value > 0, "greater than 0")
        self._check(("lr_peak", "batch_ramp"), lambda value: 0 <= value <= 1, "between 0 and 1")
        self._check(("mask_probability",), lambda value: value <= 0.5, "at most 0.5")
        self._check(("weight_decay",), lambda value: value >= 0, "at least 0")
        self._check(("betas",), lambda value: all(0 <= beta < 1 for beta in value), "two numbers in [0, 1)")

    @property
    def budgets(self) -> dict[str, float]:
        """The budgets that are given, by name."""
        names = ("budget_hours", "max_steps", "max_tokens")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def _check(self, names, is_right, expected):
        for name in names:
            if not is_right(getattr(self, name)):
                raise ValueError(f"train.{name} is {getattr(self, name)}; it should be {expected}")


@dataclass
class PretrainArguments:
    """Masked-language-model pretraining, from text to a model that from_pretrained loads."""

    model: ModelArguments = field(default_factory=ModelArguments)
    """Model"""
    data: DataArguments = field(default_factory=DataArguments)
    """Data"""
    train: TrainArguments = field(default_factory=TrainArguments)
    """Training"""
    output_dir: str = "out/pretrain"
    """Directory of the run: final/ (model and tokenizer), checkpoints/, metrics.jsonl, config.yaml, plots/."""
    seed: int = 0
    """Seed of initialisation, data order and masks."""
    resume: str = "auto"
    """auto: go on from the newest complete checkpoint in output_dir, if there is one; never: start anew, after moving
    aside what an earlier run left in output_dir; or the path of a checkpoint, or of a run's directory, to go on
    from."""

    def __post_init__(self):
        if not self.train.budgets:
            raise ValueError("no budget is given; set train.budget_hours, train.max_steps or train.max_tokens")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed is {self.seed}; it should be from 0 to {2**31 - 1}")
        for name in ("output_dir", "resume"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; it should be a path{' or auto or never' * (name == 'resume')}")

    def to_dict(self) -> dict:
        return asdict(self)
