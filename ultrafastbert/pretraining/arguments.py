"""All options of pretraining. The defaults are the cramming recipe (arXiv 2212.14034, sections 4.1 to 4.3)."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ultrafastbert.configuration_ultrafastbert import UltraFastBertConfig
from ultrafastbert.pretraining.data.arguments import DataArguments
from ultrafastbert.utils.sizes import DenseSize, TreeSize, parse_size
from ultrafastbert.utils.validation import (
    BETAS,
    FRACTION,
    NOT_EMPTY,
    NOT_NEGATIVE,
    POSITIVE,
    Rule,
    check,
    check_fields,
    integer,
)

MASK_PROBABILITY = Rule(lambda value: 0 < value <= 0.5, "greater than 0 and at most 0.5")


@dataclass
class ModelArguments:
    """The encoder that is pretrained."""

    fff: str = "1x11"
    """Feedforward layers: TREESxDEPTH for fast feedforward trees (1x11, 8x8, 3072x0, ...), 1xDEPTHxLEAF for a
    tree with leaves of several neurons (1x7x32), or dense-NEURONS for dense layers (dense-3072); none for an encoder
    without feedforward layers, as a control."""
    hidden_size: int = 768
    """Width of the encoder; even, and a multiple of the number of heads."""
    num_hidden_layers: int = 16
    """Transformer layers."""
    num_attention_heads: int = 12
    """Attention heads in each layer."""
    position_embedding: Literal["sinusoidal", "rotary"] = "sinusoidal"
    """sinusoidal: positions are added to the embeddings, as in crammedBERT; rotary: they turn queries and keys."""
    decoder_bias: bool = False
    """Whether the decoder has a bias."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights of embeddings and linear layers. 0.02 suits width 768; a narrow
    encoder learns faster from about 1/sqrt(hidden_size)."""
    zero_init_outputs: bool = False
    """Whether the matrices of attention and of dense layers whose output is added to the hidden states start at
    zero."""
    classifier_pooling: Literal["cls", "mean"] = "cls"
    """What a classifier made of the encoder sees: cls, the first token, as in crammedBERT, or mean, the average of all
    tokens. Pretraining itself has no [CLS] and does not depend on it; mean needs fewer examples."""
    dropout: float = 0.0
    """Probability of dropout everywhere in the encoder, during pretraining. [0 to 1]"""

    def __post_init__(self):
        parse_size(self.fff, "model.fff")

    def build_config(self, vocab_size: int, sequence_length: int) -> UltraFastBertConfig:
        """The configuration of the model on data with this vocabulary and length of sequences.

        Raises:
            huggingface_hub.errors.StrictDataclassError: sizes that contradict each other.
        """
        size = parse_size(self.fff, "model.fff")
        feedforward: dict[str, Any] = {"feedforward": "none"}
        if isinstance(size, DenseSize):
            feedforward = {"feedforward": "dense", "intermediate_size": size.neurons}
        elif isinstance(size, TreeSize):
            names = {"trees": "fff_trees", "depth": "fff_depth", "leaf_size": "fff_leaf_size"}
            feedforward = {"feedforward": "fff"} | {names[name]: value for name, value in size._asdict().items()}
        options = {name: value for name, value in asdict(self).items() if name not in ("fff", "dropout")}
        return UltraFastBertConfig(
            vocab_size=vocab_size,
            max_position_embeddings=sequence_length,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            **options,
            **feedforward,
        )


@dataclass
class TrainArguments:
    """Training. It ends when the first of the given budgets is spent."""

    budget_hours: float | None = None
    """Budget of wall-clock time spent in training, evaluation and checkpoints included, over all resumed runs.
    [hours; null: no such budget]"""
    max_steps: int | None = None
    """Budget of optimiser steps. [steps; null: no such budget]"""
    max_tokens: int | None = None
    """Budget of tokens seen. [tokens; null: no such budget]"""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw: AdamW for all parameters; muon: Muon for the matrices of attention and of dense layers, and AdamW for
    the others, trees included."""
    lr: float = 1e-3
    """AdamW's learning rate at its peak."""
    muon_lr: float = 0.02
    """Muon's learning rate at its peak; used with optimizer muon only."""
    lr_peak: float = 0.5
    """Where the triangular one-cycle schedule peaks; it rises from zero and falls to zero. [fraction of the budget,
    0 to 1]"""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's averaging coefficients of gradients and squared gradients."""
    eps: float = 1e-12
    """AdamW's epsilon."""
    weight_decay: float = 0.01
    """Weight decay of both optimisers; norms, biases and scales have none."""
    max_grad_norm: float = 0.5
    """Gradients with a larger norm are scaled down to this norm."""
    batch_size: int = 8192
    """Sequences in an optimiser step, over all devices, after the ramp; rounded up to whole micro-batches.
    [sequences]"""
    micro_batch_size: int = 128
    """Sequences in one forward and backward pass on one device; a step accumulates as many passes as it needs.
    [sequences]"""
    batch_ramp: float = 0.6
    """The batch grows linearly from one micro-batch to batch_size until this much of the budget is spent; 0: it has
    its full size from the start. [fraction of the budget, 0 to 1]"""
    mask_probability: float = 0.25
    """Tokens of each sequence that are predicted; the same number in every sequence. [fraction of the sequence, up to
    0.5]"""
    final_mask_probability: float | None = None
    """The same at the end of the budget; between, the value changes linearly, in steps of 0.025. [null:
    mask_probability, throughout]"""
    eval_mask_probability: float | None = None
    """That of validation. With fewer masks there is more context to predict from, so that loss and accuracy are
    comparable only at the same value. [null: mask_probability, throughout]"""
    repeat_probability: float = 0.0
    """Fraction of the training sequences that repeat their beginning: between a twelfth and a half of their tokens and
    a separator, again and again, with different masks. What is masked in one copy can be found in another, so that an
    encoder learns to compare texts, which ordinary text teaches late. [0 to 1]"""
    grow_at: float = 0.1
    """When trees with leaves (1x7x32) grow. Until then all tokens use one leaf; then each layer's decisions are made
    from a sample of its inputs, and all leaves start as copies of this one. [fraction of the budget, 0 to 1]"""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of forward and backward passes; weights and optimiser are float32. auto: bf16 on a GPU that has
    it, and on a CPU that is faster in it (a linear layer is timed at the start of the run), else fp32."""
    compile: bool | None = None
    """Whether the model is compiled by torch.compile. [null: on a GPU]"""
    log_every: int = 10
    """Interval of training metrics. [steps]"""
    eval_every: int = 500
    """Interval of validation; there is always one at the end. [steps]"""
    eval_sequences: int = 2048
    """Sequences of the validation split that are evaluated each time, with the same masks; all if it has fewer.
    [sequences]"""
    checkpoint_every: int = 500
    """Interval of checkpoints; there is always one at the end. [steps]"""
    keep_checkpoints: int = 2
    """Number of checkpoints to keep, the newest ones."""
    max_skipped_steps: int = 20
    """Training stops after this many steps in a row whose loss or gradient is not finite; such steps are skipped.
    [steps]"""
    max_skipped_fraction: float = 0.25
    """A run that has skipped more than this fraction of its steps has diverged: it ends with an error instead of a
    model. [fraction of the steps, 0 to 1]"""
    trackers: list[str] = field(default_factory=list)
    """Experiment trackers that also get the metrics, by their names in accelerate: tensorboard, wandb, ..."""

    def __post_init__(self):
        steps = ("log_every", "eval_every", "checkpoint_every", "max_skipped_steps")
        sizes = ("batch_size", "micro_batch_size", "eval_sequences", "keep_checkpoints")
        for rule, names in (
            (
                POSITIVE,
                ("budget_hours", "max_steps", "max_tokens", "lr", "muon_lr", "eps", "max_grad_norm", *steps, *sizes),
            ),
            (FRACTION, ("lr_peak", "batch_ramp", "repeat_probability", "grow_at", "max_skipped_fraction")),
            (MASK_PROBABILITY, ("mask_probability", "final_mask_probability", "eval_mask_probability")),
            (NOT_NEGATIVE, ("weight_decay",)),
            (BETAS, ("betas",)),
        ):
            check_fields(self, rule, *names, section="train")

    @property
    def budgets(self) -> dict[str, float]:
        """The given budgets, by name."""
        budgets = {"budget_hours": self.budget_hours, "max_steps": self.max_steps, "max_tokens": self.max_tokens}
        return {name: budget for name, budget in budgets.items() if budget is not None}


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
    """auto: resume from the newest complete checkpoint in output_dir, if there is one; never: start again, after
    moving aside the files of an earlier run in output_dir; or the path of a checkpoint, or of a run's directory, to
    resume from."""

    def __post_init__(self):
        if not self.train.budgets:
            raise ValueError("no budget is given; set train.budget_hours, train.max_steps or train.max_tokens")
        check("seed", self.seed, integer(0, 2**31 - 1))
        check_fields(self, NOT_EMPTY, "output_dir", "resume")

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON and YAML have them: nested, with lists for tuples."""
        return json.loads(json.dumps(asdict(self)))
