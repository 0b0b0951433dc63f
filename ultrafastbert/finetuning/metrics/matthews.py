"""Matthews correlation of classes, of two or more, as a module of `evaluate`; GLUE's metric for CoLA."""

import evaluate
from numpy.typing import ArrayLike
from sklearn.metrics import matthews_corrcoef

from ultrafastbert.finetuning.metrics import check_values, metric_info, warn_of_one_class

_DESCRIPTION = """
The Matthews correlation coefficient: the correlation between predicted and true classes. Predictions that ignore the
input have about 0, however uneven the classes are; 1 is perfect, -1 always wrong. For more than two classes it is
Gorodkin's R_K.
"""

_INPUTS = """
Args:
    predictions: predicted classes, integers from 0 to num_labels - 1.
    references: true classes.
    num_labels: the number of classes, by default 2.

Returns:
    matthews_correlation: from -1 to 1. It is 0 by convention, with a DegenerateWarning, if predictions or
        references are all one class.

Raises:
    ValueError: there are no examples, lengths differ, or a value is not a class.

Examples:
    >>> metric = evaluate.load("ultrafastbert/finetuning/metrics/matthews.py")
    >>> metric.compute(predictions=[1, 0, 1, 1], references=[1, 0, 0, 1])["matthews_correlation"]
    0.5773502691896258
"""

_CITATION = """
@article{matthews1975, author={B. W. Matthews}, year={1975}, journal={Biochimica et Biophysica Acta}, volume={405},
  title={Comparison of the predicted and observed secondary structure of {T4} phage lysozyme}, pages={442--451}}
@article{gorodkin2004, author={J. Gorodkin}, year={2004}, journal={Computational Biology and Chemistry}, volume={28},
  title={Comparing two {K}-category assignments by a {K}-category correlation coefficient}, pages={367--374}}
"""


class Matthews(evaluate.Metric):
    """The Matthews correlation coefficient, whose description gives inputs and values."""

    def _info(self) -> evaluate.MetricInfo:
        urls = ("https://doi.org/10.1016/0005-2795(75)90109-9", "https://doi.org/10.1016/j.compbiolchem.2004.09.006")
        return metric_info(_DESCRIPTION, _INPUTS, _CITATION, *urls)

    def _compute(self, predictions: ArrayLike, references: ArrayLike, num_labels: int = 2) -> dict[str, float]:
        predictions, references = check_values(predictions, references, num_labels)
        for name, values in (("predictions", predictions), ("references", references)):
            if warn_of_one_class(name, values, ": the Matthews correlation is not defined and counts as 0"):
                return {"matthews_correlation": 0.0}
        return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}
