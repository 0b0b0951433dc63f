"""Predictions of a fine-tuned model for new texts, and its evaluation on labelled ones: `ultrafastbert predict`."""

import csv
import io
import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ultrafastbert.finetuning.arguments import TEXT_COLUMNS, OwnDataArguments
from ultrafastbert.finetuning.data.encoding import EncodedSplit
from ultrafastbert.finetuning.data.tables import load_examples
from ultrafastbert.finetuning.data.tasks import Task
from ultrafastbert.finetuning.metrics import compute_metric
from ultrafastbert.finetuning.trainer import Diverged, compute_logits
from ultrafastbert.runs.models import locate_model
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import write_atomically
from ultrafastbert.utils.validation import NOT_EMPTY, POSITIVE, Rule, check_fields

FORMATS = (".tsv", ".csv", ".jsonl", ".parquet")
OUTPUT = Rule(lambda name: Path(name).suffix in FORMATS, f"a file that ends in {', '.join(FORMATS)}")


@dataclass(kw_only=True)
class PredictArguments:
    """Predictions of a fine-tuned model for the texts of a file."""

    model: str
    """Directory of a fine-tuned model, such as OUT/runs/TASK/seed-0/model, or a name on the Hub."""
    file: str
    """File of texts: .csv, .tsv, .jsonl (each also .gz) or .parquet, with named columns."""
    text_columns: list[str] | str = field(default_factory=lambda: ["text"])
    """The column of the text, or the two columns of a pair of texts: review, or [question,answer]."""
    label_column: str | None = None
    """The column of the label, to evaluate the model. [null: predict only]"""
    output: str = "predictions.tsv"
    """File of the predictions: .tsv, .csv, .jsonl or .parquet. An older file is replaced."""
    max_length: int = 128
    """Truncate longer texts, or pairs of texts, to this length. [tokens, special ones included]"""

    def __post_init__(self):
        if isinstance(self.text_columns, str):
            self.text_columns = [self.text_columns]
        check_fields(self, TEXT_COLUMNS, "text_columns")
        check_fields(self, NOT_EMPTY, "model", "file", "label_column")
        check_fields(self, OUTPUT, "output")
        check_fields(self, POSITIVE, "max_length")


def predict(arguments: PredictArguments) -> dict[str, float]:
    """Writes the predictions: `index`, `prediction`, and for classes `probability`, that of the predicted class.

    Returns:
        With `label_column` the values of the metrics, which are printed too: accuracy and F1, or correlations.

    Raises:
        UserError: the model has no trained head, a row is broken, a label is not one of the model's, or the file
            cannot be written.
    """
    logging.disable_progress_bar()
    model, tokenizer = _load(locate_model(arguments.model), arguments.max_length)
    task = _task_of(model)
    own = OwnDataArguments(
        text_columns=list(arguments.text_columns),
        label_column=arguments.label_column or "",
        regression=task.is_regression,
    )
    examples = load_examples(task, arguments.file, own, labelled=arguments.label_column is not None)
    split = EncodedSplit(examples, tokenizer, arguments.max_length)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        logits = compute_logits(model, split, device or torch.device("cpu"), nullcontext())
    except Diverged as error:
        raise UserError(f"model {arguments.model}: {error}") from error
    columns = _columns(task, logits)
    _write(Path(arguments.output), columns)
    truncated = f"; {split.truncated:,} texts were truncated to {arguments.max_length} tokens" * bool(split.truncated)
    print(f"{len(examples):,} predictions: {arguments.output}{truncated}")
    if split.labels is None:
        return {}
    predictions = logits[:, 0] if task.is_regression else logits.argmax(axis=1)
    outputs = None if task.is_regression else task.outputs
    values, warnings = compute_metric(task.metric, predictions.tolist(), split.labels.tolist(), outputs)
    print(", ".join(f"{name} {value:.4f}" for name, value in values.items()))
    for warning in warnings:
        print(f"  warning: {warning}")
    return values


def _load(name: str, max_length: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, loading = AutoModelForSequenceClassification.from_pretrained(name, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"model {name} cannot be loaded for sequence classification: {error}") from error
    if loading["missing_keys"]:
        raise UserError(
            f"model {name} has no trained head ({', '.join(sorted(loading['missing_keys'])[:3])} are missing);"
            " fine-tune it first: ultrafastbert finetune"
        )
    limit = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or math.inf)
    if max_length > limit:
        raise UserError(f"max_length is {max_length}; it should be at most {limit}, the positions of {name}")
    return model, tokenizer


def _task_of(model: PreTrainedModel) -> Task:
    config: Any = model.config
    if config.problem_type == "multi_label_classification":
        raise UserError("the model predicts several classes at once; only one class or one number is supported")
    if config.problem_type == "regression" or config.num_labels == 1:
        return Task("predict", None, "pearson_spearman", "spearman")
    labels = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    return Task("predict", labels, "accuracy_f1", "accuracy")


def _columns(task: Task, logits: np.ndarray) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {"index": list(range(len(logits)))}
    if task.labels is None:
        return columns | {"prediction": logits[:, 0].astype(float).tolist()}
    probabilities = torch.from_numpy(logits).double().softmax(dim=1)
    most, classes = probabilities.max(dim=1)
    columns["prediction"] = [task.labels[index] for index in classes.tolist()]
    return columns | {"probability": [round(value, 6) for value in most.tolist()]}


def _write(path: Path, columns: dict[str, list[Any]]) -> None:
    rows: list[Sequence[Any]] = list(zip(*columns.values(), strict=True))
    content: str | bytes
    if path.suffix == ".jsonl":
        content = "".join(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n" for row in rows)
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        buffer = io.BytesIO()
        parquet.write_table(pyarrow.table(columns), buffer)
        content = buffer.getvalue()
    else:
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter="," if path.suffix == ".csv" else "\t", lineterminator="\n")
        writer.writerows([list(columns), *rows])
        content = text.getvalue()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise UserError(f"output {path} cannot be written: {error.strerror or error}") from error
