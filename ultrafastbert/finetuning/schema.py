"""The files that fine-tuning writes: their names, and the types of what they hold."""

from typing import Any, TypedDict

import numpy as np

FORMAT = 1
"""Of `glue.json`."""

RESULTS = "glue.json"
TABLE = "glue.md"
PREDICTIONS = "predictions"
RUNS = "runs"
TESTS = "tests.json"
"""Of a run: the fingerprint of the examples that each file of predictions is for, by the title of the split."""
RUN_RESULT = "result.json"
"""Of a run, in `runs/TASK/RUN/`."""


class Evaluation(TypedDict):
    """The metric of a task on one set of examples: its values by name, and warnings about them."""

    values: dict[str, float]
    warnings: list[str]


class Outcome(TypedDict, total=False):
    """What a run computes; `diverged` is the reason why a run has no score, and then nothing else is present."""

    epochs: int
    steps: int
    train_loss: list[float]  # mean of each epoch
    held_out: float  # the task's primary metric on held-out training examples, if there are any
    evaluations: dict[str, Evaluation]  # by title of a development set; missing in a trial of a learning rate
    predictions: dict[str, np.ndarray]  # by title of a test set: (examples,), int64 classes or float32 numbers
    seconds: float
    diverged: str


class RunResult(Outcome):
    """A run in `glue.json`; `result.json` also has `task`, `settings`, but predictions are in files of their own."""

    run: str  # its name in messages
    metric: str  # the task's primary metric
    seed: int
    lr: float
    is_trial: bool  # of a learning rate, for lr_sweep
    data_fingerprint: str
    rows: dict[str, int]  # examples by split
    notes: list[str]  # on the reading of the data
    truncated: dict[str, int]  # examples that were too long, by split, without zeros
    new_weights: list[str]  # names of weights that the pretrained model does not have
    parameters: int
    environment: dict[str, str]


class Score(TypedDict):
    """A development set in `glue.json`: the task's primary metric over seeds, and the medians of the other metrics."""

    metric: str
    data_fingerprint: str
    values: list[float]
    median: float
    minimum: float
    maximum: float
    standard_deviation: float | None  # None for one seed
    other: dict[str, float]


class Average(TypedDict):
    """An average in `glue.json` over the titles `of`: the means of medians and of best runs."""

    of: list[str]
    median: float
    best: float


class Results(TypedDict):
    """The content of `glue.json`."""

    format: int
    name: str
    model: str
    settings: dict[str, Any]
    model_fingerprint: str | None
    parameters: int | None
    scores: dict[str, Score]  # by title of a development set, such as MNLI-m
    averages: dict[str, Average]  # by label, such as "average without CoLA"
    tasks: dict[str, list[RunResult]]
