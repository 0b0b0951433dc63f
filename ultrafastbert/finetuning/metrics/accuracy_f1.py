"""Accuracy and F1 of classes as a module of `evaluate`; GLUE's metrics for all tasks but CoLA and STS-B."""

import warnings

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, f1_score

from ultrafastbert.finetuning.metrics import DegenerateWarning, check_classes, warn_of_one_class

NAMED = 5
"""How many classes a warning names before it only counts them."""

_DESCRIPTION = """
Accuracy, the share of rows whose class is predicted, and F1, the harmonic mean of the precision and the recall of a
class. With two classes F1 is that of class 1, as in GLUE; with more, the mean of the F1 of all classes (macro F1).
"""

_INPUTS = """
Args:
    predictions: predicted classes, whole numbers from 0 to num_labels - 1.
    references: true classes.
    num_labels: the number of classes, by default 2. It alone decides which F1 is computed, not the classes that happen
        to occur.

Returns:
    accuracy: from 0 to 1.
    f1: from 0 to 1. A class that is never predicted, or never right to predict, has 0. One that is neither is left out
        of the mean of macro F1, as scikit-learn does. These, and predictions or references that are all one class, are
        named in a DegenerateWarning.

Raises:
    ValueError: if there are no rows, lengths differ, or a row is not a class.

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
    def _info(self):
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": number, "references": number}),
            reference_urls=["https://arxiv.org/abs/1804.07461"],
        )

    def _compute(self, predictions, references, num_labels=2):
        predictions = check_classes("predictions", predictions, num_labels)
        references = check_classes("references", references, num_labels)
        warn_of_one_class("predictions", predictions, "")
        warn_of_one_class("references", references, "")
        _warn_of_absent_classes(predictions, references, num_labels)
        average = "binary" if num_labels == 2 else "macro"
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1": float(f1_score(references, predictions, average=average, zero_division=0)),
        }


def _warn_of_absent_classes(predictions, references, num_labels):
    predicted = np.bincount(predictions, minlength=num_labels)
    true = np.bincount(references, minlength=num_labels)
    scored = [1] if num_labels == 2 else range(num_labels)
    absent = [label for label in scored if not predicted[label] or not true[label]]
    left_out = [label for label in absent if num_labels != 2 and predicted[label] == true[label] == 0]
    zero = [label for label in absent if label not in left_out]
    for consequence, labels in (("F1 counts as 0 for", zero), ("the mean of F1 leaves out", left_out)):
        named = ", ".join(
            f"class {label} ({predicted[label]} of {len(predictions)} predictions, "
            f"{true[label]} of {len(references)} references)"
            for label in labels[:NAMED]
        )
        more = f", and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
        if labels:
            warnings.warn(f"{consequence} {named}{more}", DegenerateWarning, stacklevel=2)
