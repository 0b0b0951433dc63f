"""All options of fine-tuning. The defaults of the recipe are cramming's evaluation (arXiv 2212.14034, section 5, and
the GLUE configuration of its code), which the UltraFastBERT paper (arXiv 2311.10770) uses too."""

from dataclasses import asdict, dataclass, field, fields
from typing import Literal


@dataclass(kw_only=True)
class Recipe:
    """How a model is fine-tuned: everything that decides a result besides model, data and seed."""

    random_init: bool = False
    """Leave out the pretrained weights and start from random ones: the baseline of the same shape and tokenizer."""
    epochs: int = 5
    """Passes over the training rows."""
    batch_size: int = 16
    """Rows in a step; a step's rows are of similar length."""
    lr: float = 4e-5
    """Learning rate at its peak."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises linearly from zero; it falls as a cosine to zero after
    them. [0 to 1]"""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's averaging coefficients of gradients and squared gradients."""
    eps: float = 1e-6
    """AdamW's epsilon."""
    weight_decay: float = 0.0
    """AdamW's weight decay; norms, biases and scales have none."""
    max_grad_norm: float | None = None
    """Gradients are scaled down to at most this norm. [null: they are not]"""
    dropout: float | None = 0.1
    """Probability of dropout, wherever the model has it. [0 to 1; null: as the model's configuration says]"""
    max_length: int = 128
    """Longer rows, or pairs of texts, are cut. [tokens, special ones included]"""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of forward and backward passes; weights and optimiser are float32. auto: bf16 on a GPU that has it,
    fp32 elsewhere."""
    early_stopping: int | None = None
    """Stop after this many epochs in a row that were no better on the held-out training rows, and take the weights
    of the best epoch. [epochs; null: train all epochs on all training rows]"""
    lr_sweep: list[float] | None = None
    """For each task, try these learning rates on the held-out training rows first and take the best for all seeds.
    [null: lr for all tasks]"""
    holdout: float = 0.1
    """Share of the training rows that early_stopping and lr_sweep hold out; the development set decides nothing.
    [0 to 1]"""
    save_models: bool = False
    """Keep the fine-tuned model of every run, for from_pretrained."""

    def __post_init__(self):
        positive = ["epochs", "batch_size", "lr", "eps", "max_length"]
        positive += [name for name in ("max_grad_norm", "early_stopping") if getattr(self, name) is not None]
        self._check(positive, lambda value: value > 0, "greater than 0")
        self._check(["warmup", "dropout"], lambda value: value is None or 0 <= value <= 1, "between 0 and 1")
        self._check(["weight_decay"], lambda value: value >= 0, "at least 0")
        self._check(["betas"], lambda value: all(0 <= beta < 1 for beta in value), "two numbers in [0, 1)")
        self._check(["holdout"], lambda value: 0 < value < 1, "between 0 and 1, without these two")
        rates = "different learning rates, all greater than 0"
        self._check(
            ["lr_sweep"],
            lambda value: value is None or (0 < len(set(value)) == len(value) and min(value) > 0),
            rates,
        )

    def _check(self, names, is_right, expected):
        for name in names:
            if not is_right(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}; it should be {expected}")

    @property
    def settings(self) -> dict:
        """The recipe's options, as JSON has them; a result is one of these settings."""
        plain = {field.name: getattr(self, field.name) for field in fields(Recipe)}
        return plain | {"betas": list(self.betas)}


@dataclass
class OwnDataArguments:
    """A task of your own instead of GLUE: .csv, .tsv or .jsonl files with named columns."""

    train: str | None = None
    """File of the rows to train on."""
    validation: str | None = None
    """File of the rows to evaluate on. [null: a share of the training rows is held out for it]"""
    test: str | None = None
    """File of rows to predict; it needs no label column."""
    text_columns: list[str] = field(default_factory=lambda: ["text"])
    """The column of the text, or the two columns of a pair of texts."""
    label_column: str = "label"
    """The column of the label: a class, named by any word or number."""
    regression: bool = False
    """The label is a number to be predicted, not a class."""
    validation_fraction: float = 0.1
    """Share of the training rows that becomes the validation rows where there is no such file. [0 to 1]"""

    def __post_init__(self):
        if not 1 <= len(self.text_columns) <= 2:
            raise ValueError(f"own.text_columns is {self.text_columns}; it should name one or two columns")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"own.validation_fraction is {self.validation_fraction}; it should be greater than 0 and less than 1"
            )


@dataclass(kw_only=True)
class FinetuneArguments(Recipe):
    """Fine-tuning and evaluation of a model on GLUE, or on a task of your own."""

    model: str
    """Directory of a model and its tokenizer, such as a pretraining run's final/, or a name on the Hub; any that
    AutoModelForSequenceClassification loads."""
    tasks: list[str] | str | None = None
    """GLUE tasks, separated by commas: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli. [null: all nine]"""
    data_dir: str | None = None
    """Directory of the benchmark's own files, in folders CoLA, SST-2, ... [null: nyu-mll/glue on the Hub]"""
    own: OwnDataArguments = field(default_factory=OwnDataArguments)
    """Own data"""
    seeds: int = 5
    """Runs of each task; their seeds are 0, 1, ... A seed decides the head's first weights, the order of rows and
    dropout."""
    output_dir: str = "out/glue"
    """Directory of the results: glue.json, glue.md, predictions/, and a directory for every run in runs/."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on with what is missing in output_dir; never: start anew, after moving aside what is there."""

    def __post_init__(self):
        super().__post_init__()
        self._check(["seeds"], lambda value: value > 0, "greater than 0")
        self._check(["model", "output_dir"], lambda value: value, "a path or a name, not empty")
        given = [name for name in ("tasks", "data_dir") if getattr(self, name) is not None]
        if self.own.train is not None and given:
            raise ValueError(f"own.train and {given[0]} are both given; GLUE and own data need a run each")
        if self.own.train is None and (self.own.validation or self.own.test):
            raise ValueError("own.train is not given; it should be the file of the rows to train on")
        if isinstance(self.tasks, str):
            self.tasks = [name.strip() for name in self.tasks.split(",") if name.strip()]
        if self.tasks is not None and not 0 < len(set(self.tasks)) == len(self.tasks):
            raise ValueError(f"tasks is {self.tasks}; it should be different names of GLUE tasks")

    def to_dict(self) -> dict:
        return asdict(self)
