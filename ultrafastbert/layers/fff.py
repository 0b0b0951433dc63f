"""FFF, which replaces the feedforward layer of a transformer; its mathematics is in `ultrafastbert.ops`."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ultrafastbert import ops
from ultrafastbert.utils.sizes import MAX_DEPTH
from ultrafastbert.utils.validation import check, integer, one_of


class FFF(nn.Module):
    """Binary trees of neurons. In each tree, a token uses the `depth + 1` neurons on one root-to-leaf path.

    Args:
        hidden_size: width of input and output.
        depth: levels below the root; a tree has 2^(depth+1) - 1 neurons. Depth 0 is a dense layer of `trees` neurons.
        trees: number of trees; their outputs are added.
        bias: whether the neurons have a bias, which also shifts their decisions.
        backend: a key of `ultrafastbert.ops.BACKENDS`; None chooses one in every call.

    Shapes: `(..., hidden_size)` -> `(..., hidden_size)`. Parameters: `weight_in (trees, nodes, hidden_size)`,
    `bias_in (trees, nodes)` or None, `weight_out (trees, nodes, hidden_size)`.

    Raises:
        ValueError: a size out of range or an unknown backend.
    """

    def __init__(self, hidden_size: int, depth: int, trees: int = 1, bias: bool = True, backend: str | None = None):
        super().__init__()
        check("hidden_size", hidden_size, integer(1))
        check("depth", depth, integer(0, MAX_DEPTH))
        check("trees", trees, integer(1))
        check("backend", backend, one_of(None, *ops.BACKENDS))
        self.hidden_size, self.depth, self.trees, self.backend = hidden_size, depth, trees, backend
        nodes = 2 ** (depth + 1) - 1
        self.weight_in = nn.Parameter(torch.empty(trees, nodes, hidden_size))
        self.bias_in = nn.Parameter(torch.empty(trees, nodes)) if bias else None
        self.weight_out = nn.Parameter(torch.empty(trees, nodes, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises the weights from normal distributions and the biases with zeros.

        The standard deviation of `weight_in` is 1/sqrt(hidden_size), so that normalised tokens get pre-activations of
        unit variance. That of `weight_out` is 0.02. With the larger weights that a fan-in of `depth + 1` neurons
        suggests, trees reached the same loss, but most tokens went to few leaves (docs/results/initialisation.md).
        """
        nn.init.normal_(self.weight_in, std=1 / math.sqrt(self.hidden_size))
        if self.bias_in is not None:
            nn.init.zeros_(self.bias_in)
        nn.init.normal_(self.weight_out, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluates the trees: `(..., hidden_size)` -> `(..., hidden_size)`; see `ops.fff`."""
        try:  # nn.Module's attribute access takes longer than the arithmetic of one token
            parameters: dict[str, Any] = self._parameters
            weights = parameters["weight_in"], parameters["bias_in"], parameters["weight_out"]
        except KeyError:  # parametrized, pruned or sharded weights are not in this dictionary
            weights = self.weight_in, self.bias_in, self.weight_out
        return ops.fff(x, *weights, backend=self.backend)

    def route(self, x: Tensor) -> Tensor:
        """Returns the tokens' paths: `(..., hidden_size)` -> int64 `(..., trees, depth + 1)`; see `ops.route`."""
        return ops.route(x, self.weight_in, self.bias_in, backend=self.backend)

    def extra_repr(self) -> str:
        """Returns the sizes for `repr`."""
        sizes = f"hidden_size={self.hidden_size}, trees={self.trees}, depth={self.depth}"
        return f"{sizes}, bias={self.bias_in is not None}"
