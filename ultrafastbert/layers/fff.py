"""FFF: the layer of fast feedforward trees that takes the place of a transformer's feedforward block.

The layer owns parameters and their initialisation; the mathematics is in `ultrafastbert.ops`. Parameters are
node-major, so the neurons of a path are contiguous rows. Depth 0 is a dense layer of `trees` neurons.
"""

import math

import torch
from torch import nn

from ultrafastbert import ops
from ultrafastbert.utils.sizes import MAX_DEPTH
from ultrafastbert.utils.validation import check, integer


class FFF(nn.Module):
    """`trees` binary trees of neurons, of which each token uses the `depth + 1` on one root-to-leaf path.

    Args:
        hidden_size: width of input and output.
        depth: levels below the root, at least 0; a tree has 2^(depth+1) - 1 neurons.
        trees: how many trees are evaluated side by side, their outputs added.
        bias: whether the neurons have a bias; it also shifts the decision.
        backend: the operator's backend (`ultrafastbert.ops.BACKENDS`); None picks one at every call.

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
        if backend is not None and backend not in ops.BACKENDS:
            raise ValueError(f"backend is {backend!r}; it should be None or one of {', '.join(ops.BACKENDS)}")
        self.hidden_size, self.depth, self.trees, self.backend = hidden_size, depth, trees, backend
        nodes = 2 ** (depth + 1) - 1
        self.weight_in = nn.Parameter(torch.empty(trees, nodes, hidden_size))
        self.bias_in = nn.Parameter(torch.empty(trees, nodes)) if bias else None
        self.weight_out = nn.Parameter(torch.empty(trees, nodes, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Decisions that are even and steady from the start, outputs that start small.

        `weight_in` is normal with standard deviation 1/sqrt(hidden_size): normalised tokens get pre-activations of
        unit variance. `weight_out` is normal with 0.02: with the larger weights that a fan-in of `depth + 1` neurons
        suggests, trees trained to the same loss but gathered their tokens in few leaves
        (docs/results/initialisation.md). Biases are zero.
        """
        nn.init.normal_(self.weight_in, std=1 / math.sqrt(self.hidden_size))
        if self.bias_in is not None:
            nn.init.zeros_(self.bias_in)
        nn.init.normal_(self.weight_out, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:  # nn.Module's own way to find three parameters takes longer than the arithmetic of a token
            parameters = self._parameters
            weights = parameters["weight_in"], parameters["bias_in"], parameters["weight_out"]
        except KeyError:  # parametrized, pruned or sharded: they are attributes of another kind
            weights = self.weight_in, self.bias_in, self.weight_out
        return ops.fff(x, *weights, backend=self.backend)

    def route(self, x: torch.Tensor) -> torch.Tensor:
        """The paths of the tokens: `(..., hidden_size)` -> int64 `(..., trees, depth + 1)`; see `ops.route`."""
        return ops.route(x, self.weight_in, self.bias_in, backend=self.backend)

    def extra_repr(self) -> str:
        return (
            f"hidden_size={self.hidden_size}, trees={self.trees}, depth={self.depth}, bias={self.bias_in is not None}"
        )
