"""All options of fine-tuning.

The defaults of the recipe are those of cramming's evaluation (arXiv 2212.14034, section 5, and the GLUE configuration
of its code), which the UltraFastBERT paper (arXiv 2311.10770) uses too.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ultrafastbert.utils.validation import (
    BETAS,
    FRACTION,
    NOT_EMPTY,
    NOT_NEGATIVE,
    POSITIVE,
    PROPER_FRACTION,
    Rule,
    check_fields,
)

LEARNING_RATES = Rule(
    lambda rates: 0 < len(set(rates)) == len(rates) and min(rates) > 0,
    "a list of different learning rates, all greater than 0",
)
TASK_NAMES = Rule(lambda names: 0 < len(set(names)) == len(names), "different names of GLUE tasks")
TEXT_COLUMNS = Rule(lambda names: 1 <= len(names) <= 2, "a list of one or two columns")


@dataclass(kw_only=True)
class Recipe:
    """How a model is fine-tuned: everything besides model, data and seed that decides a result."""

    random_init: bool = False
    """Ignore the pretrained weights and start from random ones: a baseline with the same shape and tokenizer."""
    epochs: int = 5
    """Passes over the training examples."""
    batch_size: int = 16
    """Examples in a step; the examples of a step have similar lengths."""
    lr: float = 4e-5
    """Learning rate at its peak."""
    warmup: float = 0.1
    """Fraction of the steps in which the learning rate rises linearly from zero; afterwards it falls to zero along a
    cosine. [0 to 1]"""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's averaging coefficients of gradients and squared gradients."""
    eps: float = 1e-6
    """AdamW's epsilon."""
    weight_decay: float = 0.0
    """AdamW's weight decay; norms, biases and scales are never decayed."""
    max_grad_norm: float | None = None
    """Scale gradients down to this norm if theirs is larger. [null: do not scale them]"""
    dropout: float | None = 0.1
    """Probability of every dropout of the model. [0 to 1; null: as the model's configuration says]"""
    pooling: Literal["cls", "mean"] | None = None
    """What the head gets from a model whose configuration has classifier_pooling: cls, the first token, or mean, the
    average of all tokens. Pretraining shows ours no [CLS], so mean needs fewer examples. [null: as the model's
    configuration says]"""
    max_length: int = 128
    """Truncate longer texts, or pairs of texts, to this length. [tokens, special ones included]"""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of forward and backward passes; weights and optimiser are float32. auto: bf16 on a GPU that supports
    it, fp32 elsewhere."""
    early_stopping: int | None = None
    """Stop after this many epochs in a row without a better score on held-out training examples, and use the weights
    of the best epoch. [epochs; null: train all epochs on all training examples]"""
    lr_sweep: list[float] | None = None
    """Try these learning rates for each task on held-out training examples first, and use the best one for all seeds.
    [null: use lr for all tasks]"""
    holdout: float = 0.1
    """Fraction of the training examples that early_stopping and lr_sweep hold out; the development set decides
    nothing. [0 to 1]"""
    save_models: bool = False
    """Keep the fine-tuned model of every run, for from_pretrained."""

    def __post_init__(self):
        check_fields(self, POSITIVE, "epochs", "batch_size", "lr", "eps", "max_grad_norm", "max_length")
        check_fields(self, POSITIVE, "early_stopping")
        check_fields(self, FRACTION, "warmup", "dropout")
        check_fields(self, NOT_NEGATIVE, "weight_decay")
        check_fields(self, BETAS, "betas")
        check_fields(self, PROPER_FRACTION, "holdout")
        check_fields(self, LEARNING_RATES, "lr_sweep")

    @property
    def settings(self) -> dict[str, Any]:
        """The recipe's options as JSON types; all results in a directory have the same ones."""
        settings = {field.name: getattr(self, field.name) for field in fields(Recipe)}
        return settings | {"betas": list(self.betas)}


@dataclass
class OwnDataArguments:
    """A task of your own instead of GLUE, from .csv, .tsv or .jsonl files with named columns."""

    train: str | None = None
    """File of training examples."""
    validation: str | None = None
    """File of examples to evaluate on. [null: hold out training examples, see validation_fraction]"""
    test: str | None = None
    """File of examples to predict; it needs no label column."""
    text_columns: list[str] | str = field(default_factory=lambda: ["text"])
    """The column of the text, or the two columns of a pair of texts: review, or [question,answer]."""
    label_column: str = "label"
    """The column of the label: a class, which may be any word or number."""
    regression: bool = False
    """Labels are numbers to predict, not classes."""
    validation_fraction: float = 0.1
    """Fraction of the training examples to hold out and evaluate on if there is no validation file. [0 to 1]"""

    def __post_init__(self):
        if isinstance(self.text_columns, str):
            self.text_columns = [self.text_columns]
        check_fields(self, TEXT_COLUMNS, "text_columns", section="own")
        check_fields(self, PROPER_FRACTION, "validation_fraction", section="own")
        columns = [*self.text_columns, self.label_column]
        if len(set(columns)) < len(columns):
            raise ValueError(f"own.text_columns and own.label_column are {columns}; they should be different columns")
        if self.train is None and (self.validation or self.test):
            raise ValueError("own.train is missing; it should be the file of training examples")


@dataclass(kw_only=True)
class FinetuneArguments(Recipe):
    """Fine-tuning and evaluation of a model on GLUE, or on a task of your own."""

    model: str
    """Directory of a model and its tokenizer, such as a pretraining run's final/, or a name on the Hub; any model that
    AutoModelForSequenceClassification loads."""
    tasks: list[str] | str | None = None
    """GLUE tasks, separated by commas: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli. [null: all nine]"""
    data_dir: str | None = None
    """Directory of the benchmark's own files, in folders CoLA, SST-2, ... [null: nyu-mll/glue on the Hub]"""
    own: OwnDataArguments = field(default_factory=OwnDataArguments)
    """Own data"""
    seeds: int = 5
    """Runs of each task, with the seeds 0, 1, ... A seed decides the initial weights of the head, the order of
    examples, and dropout."""
    output_dir: str = "out/glue"
    """Directory of the results: glue.json, glue.md, predictions/, and a directory for every run in runs/."""
    resume: Literal["auto", "never"] = "auto"
    """auto: do the runs that are missing in output_dir; never: move existing results aside and start over."""

    def __post_init__(self):
        super().__post_init__()
        check_fields(self, POSITIVE, "seeds")
        check_fields(self, NOT_EMPTY, "model", "output_dir")
        given = [name for name in ("tasks", "data_dir") if getattr(self, name) is not None]
        if self.own.train is not None and given:
            raise ValueError(f"own.train and {given[0]} are both given; GLUE and own data need separate runs")
        if isinstance(self.tasks, str):
            self.tasks = [name.strip() for name in self.tasks.split(",") if name.strip()]
        check_fields(self, TASK_NAMES, "tasks")
