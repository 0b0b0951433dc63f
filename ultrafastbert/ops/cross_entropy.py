"""Cross-entropy of rows of logits, as a native operator on a CPU.

PyTorch copies logits of 16 bits to float32, keeps their log-softmax as well, and computes exponentials slowly: for a
small encoder with a vocabulary of 8,192 that is a third of a training step. The operator reads
the logits as they are, and keeps one number a row.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ultrafastbert.ops import native

IGNORED = -100
"""The label of rows without loss, as in PyTorch."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of each row, in nats, computed in float32 or, for float64, in float64.

    Args:
        logits: `(rows, classes)`, floating point.
        labels: `(rows,)` int64, classes, and -100 for rows whose loss is 0.

    Returns:
        `(rows,)`. On a CPU with the native operators there are no second derivatives.

    Raises:
        IndexError: a label that is no class.
    """
    if logits.is_cpu and labels.is_cpu and native.available():
        return torch.ops.ultrafastbert.cross_entropy(logits, labels)[0]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)
