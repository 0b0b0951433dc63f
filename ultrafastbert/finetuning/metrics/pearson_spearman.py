"""Pearson and Spearman correlations of numbers as a module of `evaluate`; GLUE's metrics for STS-B."""

import evaluate
import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import pearsonr, spearmanr

from ultrafastbert.finetuning.metrics import check_values, metric_info, warn

ROUNDING = 1e-6
"""Predictions that differ by no more than this fraction of their magnitude count as constant: it is eight times the
precision of float32, in which models compute. Such differences depend on the order of sums, not on the texts."""

_DESCRIPTION = """
Two correlations between predicted and true numbers: Pearson's, of the numbers, which is 1 if one is a rising linear
function of the other, and Spearman's, of their ranks, which is 1 if it is any rising function. Equal numbers get the
mean of their ranks.
"""

_INPUTS = f"""
Args:
    predictions: predicted numbers.
    references: true numbers.

Returns:
    pearson: from -1 to 1.
    spearman: from -1 to 1.
    Both are 0 by convention, with a DegenerateWarning, if predictions or references are constant. Predictions are
    constant too if they differ by no more than {ROUNDING:g} of the largest magnitude, which is rounding in float32.

Raises:
    ValueError: there are no examples, lengths differ, or a value is not finite.

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
    """Pearson's and Spearman's correlations, whose description gives inputs and values."""

    def _info(self) -> evaluate.MetricInfo:
        urls = ("https://doi.org/10.1098/rspl.1895.0041", "https://doi.org/10.2307/1412159")
        return metric_info(_DESCRIPTION, _INPUTS, _CITATION, *urls)

    def _compute(self, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        predictions, references = check_values(predictions, references)
        for name, values, tolerance in (("predictions", predictions, ROUNDING), ("references", references, 0.0)):
            if _is_constant(values, tolerance):
                warn(
                    f"{name} are constant ({len(values)} examples, from {values.min():g} to {values.max():g}): "
                    "both correlations are not defined and count as 0"
                )
                return {"pearson": 0.0, "spearman": 0.0}
        pearson, spearman = pearsonr(_centred(predictions), _centred(references)), spearmanr(predictions, references)
        return {
            "pearson": float(pearson.statistic),  # pyright: ignore[reportAttributeAccessIssue]
            "spearman": float(np.clip(spearman.statistic, -1, 1)),  # pyright: ignore[reportAttributeAccessIssue]
        }


def _is_constant(values: np.ndarray, tolerance: float) -> bool:
    # halved, because the difference of large numbers may overflow
    return values.max() / 2 - values.min() / 2 <= tolerance * np.abs(values).max() / 2


def _centred(values: np.ndarray) -> np.ndarray:
    """`values` less their mean, divided by about their largest magnitude.

    This does not change Pearson's correlation, but SciPy's arithmetic overflows at the ends of the range of floats.
    """
    values = np.ldexp(values, -np.frexp(np.abs(values).max())[1])
    return values - values.mean()
