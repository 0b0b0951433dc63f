"""HardFFF: a tree whose nodes only decide, along a path fixed by data, and whose leaves are feedforward networks.

- A token uses one leaf, in training as in inference, so both cost as much as a dense layer of `leaf_size` neurons and
  `depth` decisions.
- A hard decision has no gradient. `split_by_variance` makes the decisions from a sample of inputs instead: each node
  divides its tokens at the median of their first principal component, so that every leaf gets as many.
- Until then all tokens use the first leaf, and `split_by_variance` starts all leaves as copies of it. So a layer can
  be trained as a narrow dense layer first, and the function does not change when the tree grows.
- Inputs drift while the layers below learn. `balance` moves the thresholds after them, so that leaves stay in use.

In FFF the neurons that decide also add to the output; docs/results/trees.md compares the two. Sources: arXiv
2308.14711 (leaves), 2212.05055 (leaves that start as copies), 2408.15664 (balance by biases, without gradients).
"""

import math

import torch
from torch import Tensor, nn

from ultrafastbert.layers.soft import SoftFFF
from ultrafastbert.ops.leaves import leaves
from ultrafastbert.ops.reference import at_least_float32
from ultrafastbert.utils.validation import check, integer

POWER_ITERATIONS = 16


class HardFFF(SoftFFF):
    """A `SoftFFF` of one width with GELU, whose paths are hard and whose decisions are made from data.

    Args:
        hidden_size: width of input and output.
        depth: decisions on a path; there are `2^depth` leaves.
        leaf_size: neurons of a leaf.

    Shapes: `(..., hidden_size)` -> `(..., hidden_size)`. Parameters are those of `SoftFFF`; the nodes are not
    trained, and are zero until `split_by_variance`. A decision is then the projection of a token in standard
    deviations of those in the sample, from their median.

    Attributes:
        leaf_counts: float32 `(leaves,)`, the tokens at each leaf in training mode since `balance`; None, as at first:
            they are not counted.

    Raises:
        ValueError: a size out of range.
    """

    shown = ("input_size", "depth", "leaf_size")

    def __init__(self, hidden_size: int, depth: int, leaf_size: int):
        check("hidden_size", hidden_size, integer(1))
        super().__init__(
            hidden_size, leaf_size, hidden_size, depth, activation=nn.GELU, hardening=math.inf, train_hard=True
        )
        self.leaf_counts: Tensor | None = None

    def reset_parameters(self) -> None:
        """Initialises the leaves from normal distributions; nodes and biases with zeros.

        As in `FFF`, the standard deviation of input weights is 1/sqrt(hidden_size) and that of output weights 0.02.
        """
        nn.init.zeros_(self.node_weight_in)
        nn.init.zeros_(self.node_bias_in)
        nn.init.zeros_(self.leaf_bias_in)
        nn.init.zeros_(self.leaf_bias_out)
        nn.init.normal_(self.leaf_weight_in, std=1 / math.sqrt(self.input_size))
        nn.init.normal_(self.leaf_weight_out, std=0.02)

    @property
    def is_split(self) -> bool:
        """Whether the nodes decide anything; waits for the device."""
        return bool(self.node_weight_in.any())

    @torch.no_grad()
    def split_by_variance(self, x: Tensor) -> None:
        """Makes the decisions from a sample of inputs, `(..., hidden_size)`, and starts all leaves as the first one.

        Every node divides the tokens that reach it at the median of their first principal component. A node that
        fewer than two tokens reach gets a random plane through their mean.

        Raises:
            ValueError: there are no tokens or some are not finite, or the tree already has decisions.
        """
        x = at_least_float32(self.tokens(x))
        if not len(x):
            raise ValueError("x has no tokens; a tree is split by the tokens of a sample")
        if not x.isfinite().all():
            raise ValueError("x has values that are not finite; a tree cannot be split by them")
        if self.is_split:
            raise ValueError("the tree has decisions; split_by_variance is for one that has none")
        least = 0.01 * (x - x.mean(0)).square().mean().sqrt() + 1e-5 * x.abs().max()  # less may be that of rounding
        generator = torch.Generator().manual_seed(0)
        groups = {0: x}
        for node in range(len(self.node_weight_in)):
            tokens = groups.pop(node)
            start = torch.randn(self.input_size, generator=generator).to(x)
            mean = tokens.mean(0) if len(tokens) else torch.zeros_like(start)
            direction = principal_direction(tokens - mean, start)
            projection = tokens @ direction
            threshold = projection.median() if len(tokens) > 1 else mean @ direction
            deviation = (projection - threshold).square().mean().sqrt()
            deviation = torch.where(deviation > least, deviation, 1)
            self.node_weight_in[node, 0] = direction / deviation
            self.node_bias_in[node, 0] = -threshold / deviation
            right = projection > threshold
            groups[2 * node + 1], groups[2 * node + 2] = tokens[~right], tokens[right]
        for leaf in self._leaves():
            leaf[1:] = leaf[:1]

    @torch.no_grad()
    def balance(self, rate: Tensor | float) -> None:
        """Moves every threshold towards the median of the tokens that `leaf_counts` counted, and counts anew.

        A tree without decisions does not change.

        Args:
            rate: twice how far a threshold moves if all tokens go to one side. [standard deviations]

        Raises:
            ValueError: the tokens are not counted.
        """
        if self.leaf_counts is None:
            raise ValueError("leaf_counts is None; it should be zeros (leaves,), so that tokens are counted")
        counts, shifts = self.leaf_counts, []
        for _ in range(self.depth):  # from the lowest level up
            left, right = counts.view(-1, 2).unbind(1)
            counts = left + right
            shifts.insert(0, (left - right) / (2 * counts.clamp(min=1)))
        if self.depth:
            self.node_bias_in.add_(torch.cat(shifts).unsqueeze(1) * rate * self.node_weight_in.any())
        self.leaf_counts.zero_()

    def _choose(self, x: Tensor) -> Tensor:
        if self.training:
            self.node_entropy = torch.zeros_like(self.node_bias_in[:, 0])
        output, leaf = leaves(x, self.node_weight_in, self.node_bias_in, *self._leaves())
        if self.training and self.leaf_counts is not None:
            self.leaf_counts.index_add_(0, leaf, torch.ones_like(leaf, dtype=torch.float32))
        return output


def principal_direction(x: Tensor, start: Tensor) -> Tensor:
    """The unit vector along which the centred rows of `x (rows, columns)` vary most, by iteration from `start`."""
    direction = start / start.norm()
    for _ in range(POWER_ITERATIONS):
        image = x.T @ (x @ direction)
        length = image.norm()
        if not length > 0:  # all rows are equal
            break
        direction = image / length
    return direction
