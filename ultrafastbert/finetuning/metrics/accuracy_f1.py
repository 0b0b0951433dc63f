"""Accuracy and F1 of classes as a module of `evaluate`; GLUE's metrics for all tasks but CoLA and STS-B."""

import evaluate
import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score, f1_score

from ultrafastbert.finetuning.metrics import check_values, metric_info, warn, warn_of_one_class

NAMED = 5
"""How many classes a warning names before it only counts them."""

_DESCRIPTION = """
Accuracy, the fraction of correct predictions, and F1, the harmonic mean of the precision and the recall of a
class. With two classes F1 is that of class 1, as in GLUE; with more, the mean of the F1 of all classes (macro F1).
"""

_INPUTS = """
Args:
    predictions: predicted classes, integers from 0 to num_labels - 1.
    references: true classes.
    num_labels: the number of classes, by default 2. It decides which F1 is computed, not the classes that occur.

Returns:
    accuracy: from 0 to 1.
    f1: from 0 to 1. A class that only predictions or only references have counts as 0. A class that neither has is
        ignored by macro F1, as in scikit-learn. A DegenerateWarning names these classes, and predictions or references
        that are all one class.

Raises:
    ValueError: there are no examples, lengths differ, or a value is not a class.

Examples:
    >>> metric = evaluate.load("ultrafastbert/finetuning/metrics/accuracy_f1.py")
    >>> metric.compute(predictions=[1, 1, 1, 0], references=[1, 0, 1, 1])["f1"]
    0.6666666666666666
    >>> metric.compute(predictions=[2, 1, 1, 0], references=[2, 1, 0, 0], num_labels=3)
    {'accuracy': 0.75, 'f1': 0.7777777777777777}
"""

_CITATION = """
@book{vanrijsbergen1979, author={C. J. van Rijsbergen}, title={Information Retrieval}, edition={2nd}, year={1979},
  publisher={Butterworths}}
@inproceedings{wang2019glue, author={Alex Wang and Amanpreet Singh and Julian Michael and Felix Hill and Omer Levy and
  Samuel R. Bowman}, title={{GLUE}: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding},
  booktitle={ICLR}, year={2019}}
"""


class AccuracyF1(evaluate.Metric):
    """Accuracy and F1, whose description gives inputs and values."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(_DESCRIPTION, _INPUTS, _CITATION, "https://arxiv.org/abs/1804.07461")

    def _compute(self, predictions: ArrayLike, references: ArrayLike, num_labels: int = 2) -> dict[str, float]:
        predictions, references = check_values(predictions, references, num_labels)
        warn_of_one_class("predictions", predictions)
        warn_of_one_class("references", references)
        _warn_of_absent_classes(predictions, references, num_labels)
        average = "binary" if num_labels == 2 else "macro"
        f1 = f1_score(references, predictions, average=average, zero_division=0)  # pyright: ignore[reportArgumentType]
        return {"accuracy": float(accuracy_score(references, predictions)), "f1": float(f1)}


def _warn_of_absent_classes(predictions: np.ndarray, references: np.ndarray, num_labels: int) -> None:
    predicted = np.bincount(predictions, minlength=num_labels)
    true = np.bincount(references, minlength=num_labels)
    if num_labels == 2:
        zero, ignored = [1] if not predicted[1] or not true[1] else [], []
    else:
        zero = np.flatnonzero((predicted == 0) != (true == 0)).tolist()
        ignored = np.flatnonzero((predicted == 0) & (true == 0)).tolist()
    for consequence, labels in (("F1 counts as 0 for", zero), ("the mean of F1 ignores", ignored)):
        named = ", ".join(
            f"class {label} ({predicted[label]} of {len(predictions)} predictions, "
            f"{true[label]} of {len(references)} references)"
            for label in labels[:NAMED]
        )
        more = f", and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
        if labels:
            warn(f"{consequence} {named}{more}")
