"""Pearson and Spearman correlations of numbers as a module of `evaluate`; GLUE's metrics for STS-B."""

import warnings

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr

from ultrafastbert.finetuning.metrics import DegenerateWarning, check_numbers

ROUNDING = 1e-6
"""Predictions that differ by no more than this share of their magnitude count as constant: eight times the precision
of float32, in which models compute. What correlates there is the order of their sums, not what they say of a text."""

_DESCRIPTION = """
Two correlations between predicted and true numbers: Pearson's, of the numbers, which is 1 where one is a rising linear
function of the other, and Spearman's, of their ranks, which is 1 where it is any rising function. Equal numbers share
the mean of their ranks.
"""

_INPUTS = f"""
Args:
    predictions: predicted numbers.
    references: true numbers.

Returns:
    pearson: from -1 to 1.
    spearman: from -1 to 1.
    Both are 0 by convention, with a DegenerateWarning, where predictions or references are constant. Predictions are
    constant too if they differ by no more than {ROUNDING:g} of the largest magnitude, which is rounding in float32.

Raises:
    ValueError: if there are no rows, lengths differ, or a row is not finite.

Examples:
    >>> metric = evaluate.load("ultrafastbert/finetuning/metrics/pearson_spearman.py")
    >>> values = metric.compute(predictions=[1.0, 2.0, 3.0], references=[1.0, 2.0, 9.0])
    >>> {{name: round(value, 3) for name, value in values.items()}}
    {{'pearson': 0.918, 'spearman': 1.0}}
"""

_CITATION = """
@article{pearson1895, author={Karl Pearson}, title={Note on Regression and Inheritance in the Case of Two Parents},
  journal={Proceedings of the Royal Society of London}, volume={58}, pages={240--242}, year={1895}}
@article{spearman1904, author={C. Spearman}, title={The Proof and Measurement of Association between Two Things},
  journal={The American Journal of Psychology}, volume={15}, pages={72--101}, year={1904}}
"""


class PearsonSpearman(evaluate.Metric):
    def _info(self):
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": number, "references": number}),
            reference_urls=["https://doi.org/10.1098/rspl.1895.0041", "https://doi.org/10.2307/1412159"],
        )

    def _compute(self, predictions, references):
        predictions = check_numbers("predictions", predictions)
        references = check_numbers("references", references)
        for name, values, tolerance in (("predictions", predictions, ROUNDING), ("references", references, 0.0)):
            if _warn_if_constant(name, values, tolerance):
                return {"pearson": 0.0, "spearman": 0.0}
        return {
            "pearson": float(pearsonr(_centred(predictions), _centred(references)).statistic),
            "spearman": float(np.clip(spearmanr(predictions, references).statistic, -1, 1)),
        }


def _warn_if_constant(name, values, tolerance):
    low, high = values.min(), values.max()
    if high / 2 - low / 2 > tolerance * np.abs(values).max() / 2:  # halved: a difference of large numbers may overflow
        return False
    warnings.warn(
        f"{name} are constant (rows: {len(values)}, from {low:g} to {high:g}): "
        "both correlations, which are then not defined, count as 0",
        DegenerateWarning,
        stacklevel=2,
    )
    return True


def _centred(values):
    """`values` less their mean, in units of about their largest magnitude: which Pearson's correlation does not depend
    on, but SciPy's arithmetic at the ends of the range of floats does."""
    values = np.ldexp(values, -np.frexp(np.abs(values).max())[1])
    return values - values.mean()
