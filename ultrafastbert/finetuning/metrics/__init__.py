"""Metrics of the GLUE tasks: modules of the `evaluate` library that are part of the package, so nothing is downloaded.

This package computes them by `compute_metric`; `evaluate.load` also loads a file of this directory by its path.
Notable:
- If a value is not defined, because predictions are all one class for instance, it is 0 with a `DegenerateWarning`,
  never NaN. Wrong input, such as a prediction that is NaN, is an error: a model that diverged should not look like one
  that learned nothing.
- The modules declare classes as floats. If they declared integers, `evaluate` would silently convert 0.7 to class 0;
  as a float it is an error.
"""

import importlib
import tempfile
import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.validation import check, one_of

if TYPE_CHECKING:
    import evaluate

METRICS = {"matthews": "Matthews", "accuracy_f1": "AccuracyF1", "pearson_spearman": "PearsonSpearman"}
"""The class in the module of each metric."""


class DegenerateWarning(UserWarning):
    """A value is defined only by convention, or means little; the message gives the reason, with counts."""


def compute_metric(
    name: str, predictions: ArrayLike, references: ArrayLike, num_labels: int | None = None
) -> tuple[dict[str, float], list[str]]:
    """Evaluates predictions, without network access or lasting files; several processes may do so at the same time.

    Args:
        name: `matthews` (computes `matthews_correlation`) or `accuracy_f1` (`accuracy`, `f1`) for classes, or
            `pearson_spearman` (`pearson`, `spearman`) for numbers.
        predictions: `(examples,)` classes from 0 to num_labels - 1, or numbers; a list, an array or a tensor.
        references: `(examples,)` likewise.
        num_labels: number of classes; None for two classes, and for numbers.

    Returns:
        The values, from 0 to 1 (accuracy, F1) or -1 to 1 (correlations), and sentences about values that are not
        defined (and are 0) or mean little.

    Raises:
        ValueError: there is no such metric, there are no examples, predictions and references differ in length, or a
            value is not finite or not a class.
        UserError: a library is missing.
    """
    metric_class = load_metric(name)
    options = {} if num_labels is None else {"num_labels": num_labels}
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DegenerateWarning)
        # In memory, because all processes would share evaluate's file of examples. It still creates directories.
        metric = metric_class(keep_in_memory=True, cache_dir=directory)
        values = metric.compute(predictions=predictions, references=references, **options)
    return values or {}, [str(warning.message) for warning in caught]


def load_metric(name: str) -> "type[evaluate.Metric]":
    """Imports a metric, for instance to check before a long training that its libraries are installed.

    Raises:
        ValueError: there is no such metric.
        UserError: a library is missing.
    """
    check("metric", name, one_of(*METRICS))
    try:
        return getattr(importlib.import_module(f"{__name__}.{name}"), METRICS[name])
    except ImportError as error:
        raise UserError(f"the metric {name} needs: pip install evaluate scikit-learn scipy ({error})") from error


def metric_info(description: str, inputs: str, citation: str, *urls: str) -> "evaluate.MetricInfo":
    """The information that `evaluate` requires of a metric whose predictions and references are floats."""
    import datasets
    import evaluate

    number = datasets.Value("float64")
    return evaluate.MetricInfo(
        description=description,
        citation=citation,
        inputs_description=inputs,
        features=datasets.Features({"predictions": number, "references": number}),
        reference_urls=list(urls),
    )


def check_values(
    predictions: ArrayLike, references: ArrayLike, num_labels: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and references as arrays: int64 if they are classes, float64 if `num_labels` is None.

    Raises:
        ValueError: there are none, or one is not an integer from 0 to num_labels - 1, or not a finite number.
    """
    arrays = []
    for name, values in (("predictions", predictions), ("references", references)):
        values = np.asarray(values, dtype=np.float64)
        if num_labels is None:
            is_valid, expected = np.isfinite(values), "a finite number"
        else:
            is_valid = (values >= 0) & (values < num_labels) & (values == np.floor(values))
            expected = f"a class, an integer from 0 to {num_labels - 1}"
        if not len(values):
            raise ValueError(f"{name} have no examples")
        if not is_valid.all():
            wrong = np.flatnonzero(~is_valid)
            count = f"{len(wrong)} of {len(values)} examples are not"
            raise ValueError(f"{name}[{wrong[0]}] is {values[wrong[0]]:g}; it should be {expected} ({count})")
        arrays.append(values if num_labels is None else values.astype(np.int64))
    return arrays[0], arrays[1]


def warn_of_one_class(name: str, values: np.ndarray, consequence: str = "") -> bool:
    """Warns if `values`, `(examples,)` int64, are all one class; returns whether they are."""
    is_one = bool((values == values[0]).all())
    if is_one:
        warn(f"{name} are class {values[0]} in all examples ({len(values)}){consequence}")
    return is_one


def warn(message: str) -> None:
    """Warns by a `DegenerateWarning`."""
    warnings.warn(message, DegenerateWarning, stacklevel=3)
