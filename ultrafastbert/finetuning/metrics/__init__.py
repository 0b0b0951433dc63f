"""Metrics of the GLUE tasks: modules of the `evaluate` library that the package carries, so nothing is downloaded.

`compute_metric` is how this package computes them; `evaluate.load` of the path of a file in this directory works
too.
Notable:
- Input that leaves a value without a definition, such as predictions that are all one class, has 0 for it and a
  `DegenerateWarning` that says so, never NaN. Input that is wrong, such as a prediction that is NaN, is an error: a
  model that diverged must not pass for one that learned nothing.
- The modules declare classes as floats. Declared as integers, `evaluate` would cut a 0.7 to the class 0; so it arrives
  here and is an error.
"""

import importlib
import tempfile
import warnings

import numpy as np

from ultrafastbert.utils.errors import UserError

METRICS = {"matthews": "Matthews", "accuracy_f1": "AccuracyF1", "pearson_spearman": "PearsonSpearman"}
"""The class in the module of each metric."""


class DegenerateWarning(UserWarning):
    """A value has a definition only by convention, or says little; the message says why, with classes and counts."""


def compute_metric(name, predictions, references, num_labels: int | None = None) -> tuple[dict[str, float], list[str]]:
    """Evaluates predictions, without the network or files that stay; several processes may do so at the same time.

    Args:
        name: `matthews` (gives `matthews_correlation`), `accuracy_f1` (`accuracy`, `f1`), both of classes, or
            `pearson_spearman` (`pearson`, `spearman`), of numbers.
        predictions: (rows,) classes from 0 to num_labels - 1, or numbers; a list, an array or a tensor.
        references: (rows,) likewise.
        num_labels: the number of classes, 2 where it is None; None for numbers.

    Returns:
        The values, from 0 to 1 (accuracy, F1) or -1 to 1 (correlations), and sentences that say which of them have
        no definition (and are 0) or say little, and why.

    Raises:
        ValueError: if there is no such metric, there are no rows, predictions and references differ in length, or a
            row is not finite or not a class.
        UserError: if a library is missing.
    """
    metric_class = load_metric(name)
    options = {} if num_labels is None else {"num_labels": num_labels}
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DegenerateWarning)
        # In memory: evaluate's file of rows would be shared by all processes. It still makes empty directories.
        metric = metric_class(keep_in_memory=True, cache_dir=directory)
        values = metric.compute(predictions=predictions, references=references, **options)
    return values, [str(warning.message) for warning in caught]


def load_metric(name: str) -> type:
    """The `evaluate.Metric` of that name; see `compute_metric` for names and errors.

    Whoever needs a metric after hours of work can find out first whether its libraries are there.
    """
    if name not in METRICS:
        raise ValueError(f"metric is {name!r}; it should be one of {', '.join(METRICS)}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{name}"), METRICS[name])
    except ImportError as error:
        raise UserError(f"the metric {name} needs: pip install evaluate scikit-learn scipy ({error})") from error


def check_classes(name: str, values, num_labels: int) -> np.ndarray:
    """`values` as an int64 array.

    Raises:
        ValueError: if there are none, or one is not a whole number from 0 to num_labels - 1.
    """
    values = np.asarray(values, dtype=np.float64)
    is_class = (values >= 0) & (values < num_labels) & (values == np.floor(values))
    _check_rows(name, values, is_class, f"a class, a whole number from 0 to {num_labels - 1}")
    return values.astype(np.int64)


def check_numbers(name: str, values) -> np.ndarray:
    """`values` as a float64 array.

    Raises:
        ValueError: if there are none, or one is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    _check_rows(name, values, np.isfinite(values), "a finite number")
    return values


def warn_of_one_class(name: str, values: np.ndarray, consequence: str) -> bool:
    """Whether `values` hold a single class; warns of it if so.

    Args:
        name: what the warning calls the values.
        values: (rows,) int64, at least one row.
        consequence: ends the warning's sentence.
    """
    is_one = bool((values == values[0]).all())
    if is_one:
        warnings.warn(
            f"{name} are class {values[0]} in all rows ({len(values)}){consequence}", DegenerateWarning, stacklevel=2
        )
    return is_one


def _check_rows(name, values, is_right, expected):
    if not len(values):
        raise ValueError(f"{name} have no rows")
    if not is_right.all():
        wrong = np.flatnonzero(~is_right)
        raise ValueError(
            f"{name}[{wrong[0]}] is {values[wrong[0]]:g}; it should be {expected} "
            f"({len(wrong)} of {len(values)} rows are not)"
        )
