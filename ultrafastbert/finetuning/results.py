"""Results of fine-tuning: the files in an output directory, and the types of what they hold."""

from typing import Any, TypedDict

import numpy as np

FORMAT = 1
"""Of `glue.json`."""

RESULTS = "glue.json"
TABLE = "glue.md"
PREDICTIONS = "predictions"
RUNS = "runs"
RUN_RESULT = "result.json"
"""Of a run, in `runs/TASK/RUN/`."""


class Evaluation(TypedDict):
    """The metric of a task on one set of examples: its values by name, and warnings about them."""

    values: dict[str, float]
    warnings: list[str]


class Outcome(TypedDict, total=False):
    """What a run computes.

    Attributes:
        epochs: trained.
        steps: trained.
        train_loss: mean of each epoch.
        held_out: the task's primary metric on the held-out training examples, if there are any.
        evaluations: by title of a development set; missing in a trial of a learning rate.
        predictions: by title of a test set, a class (int64) or a number (float32) for each example, `(examples,)`;
            saved in files of their own.
        seconds: of training and evaluation.
        diverged: why the run has no score; then nothing else is present.
    """

    epochs: int
    steps: int
    train_loss: list[float]
    held_out: float
    evaluations: dict[str, Evaluation]
    predictions: dict[str, np.ndarray]
    seconds: float
    diverged: str


class RunResult(Outcome):
    """A run in `glue.json`; its `result.json` also states `task`, the task's name, and `settings`.

    Attributes:
        run: its name in messages.
        metric: the task's primary metric.
        seed: of the run.
        lr: the learning rate at its peak.
        is_trial: whether the run tried a learning rate for `lr_sweep`.
        data_fingerprint: of the task's examples.
        rows: examples by split.
        notes: on the reading of the data.
        truncated: examples that were too long, by split, where there are any.
        new_weights: names of the weights that the pretrained model does not have.
        parameters: of the model.
        environment: device and versions.
    """

    run: str
    metric: str
    seed: int
    lr: float
    is_trial: bool
    data_fingerprint: str
    rows: dict[str, int]
    notes: list[str]
    truncated: dict[str, int]
    new_weights: list[str]
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
    standard_deviation: float | None
    other: dict[str, float]


class Average(TypedDict):
    """An average in `glue.json` over the titles `of`: the means of medians and of best runs."""

    of: list[str]
    median: float
    best: float


class Results(TypedDict):
    """The content of `glue.json`.

    Attributes:
        format: `FORMAT`.
        name: of the model in tables.
        model: directory or name on the Hub.
        settings: of the recipe.
        model_fingerprint: hash of the model's files.
        parameters: of the model.
        scores: by title of a development set, such as `MNLI-m`.
        averages: by label, such as `average without CoLA`.
        tasks: the runs of each task.
    """

    format: int
    name: str
    model: str
    settings: dict[str, Any]
    model_fingerprint: str | None
    parameters: int | None
    scores: dict[str, Score]
    averages: dict[str, Average]
    tasks: dict[str, list[RunResult]]
