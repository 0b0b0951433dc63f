"""SoftFFF: a tree that learns to divide its input space into regions, each with a small feedforward network.

- Training mixes the outputs of all leaves by the probabilities of their paths, so that decisions have a gradient. The
  mixture weights multiply the leaves' hidden neurons. So all leaves together are two matrix products, like a dense
  layer with as many neurons, and the outputs of single leaves are never in memory.
- Inference takes one path and evaluates the leaf at its end, in one product for all tokens at this leaf.

In FFF every node on the path is a neuron that decides and adds to the output; here nodes only decide and leaves only
compute (docs/soft.md compares the two). Source: arXiv 2308.14711, algorithm 1.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from ultrafastbert import ops
from ultrafastbert.layers.blocks import BlockLayer, grouped_feedforward, init_blocks, init_linear
from ultrafastbert.ops.reference import at_least_float32
from ultrafastbert.utils.sizes import MAX_DEPTH
from ultrafastbert.utils.validation import FRACTION, at_least, check, integer

# Up to this depth, inference multiplies each token with all nodes: those on its path alone are not faster on a CPU
# (docs/benchmarks/soft.md).
ALL_NODES_DEPTH = 6


def decision_entropy(logits: Tensor) -> Tensor:
    """Returns the entropy of going right with probability sigmoid(logit), elementwise: 0 to log 2, in nats."""
    # The entropy is even in the logit. With a = |logit| and p = sigmoid(a) it is -log p + (1 - p) a, two terms of
    # equal sign, so that it is accurate for any logit.
    magnitude = logits.abs()
    return softplus(-magnitude) + (-magnitude).sigmoid() * magnitude


class SoftFFF(BlockLayer):
    """A binary tree of `2^depth - 1` nodes, which decide, and `2^depth` leaves, which are small feedforward networks.

    Nodes are numbered as in FFF. Node i computes the logit of the probability of its right child. Leaf j has the heap
    index `2^depth - 1 + j`.

    Args:
        input_size, leaf_size, output_size: a leaf is Linear(input_size, leaf_size), activation, dropout,
            Linear(leaf_size, output_size).
        depth: number of decisions on a path, at least 0; with 0 the layer is an ordinary feedforward layer.
        node_size: with 1 a node is a linear neuron, whose boundary is a plane; otherwise it is
            Linear(input_size, node_size), activation, Linear(node_size, 1).
        activation, dropout: as in `BlockLayer`.
        region_leak: probability that a node's decision p about a token becomes 1 - p, in training.
        hardening: weight h of the hardening loss. It can be set at any time: `math.inf` freezes the nodes, and another
            value unfreezes them.
        train_hard: train with hard paths, as in inference. The nodes get no gradient.

    Parameters: `node_weight_in (nodes, node_size, input_size)`,
    `node_bias_in (nodes, node_size)`; `node_weight_out (nodes, node_size)` and `node_bias_out (nodes,)`, None if
    node_size is 1; `leaf_weight_in (leaves, leaf_size, input_size)`, `leaf_bias_in (leaves, leaf_size)`,
    `leaf_weight_out (leaves, leaf_size, output_size)`, `leaf_bias_out (leaves, output_size)`.

    Attributes:
        node_entropy: `(nodes,)`, the entropy of each node's decision in nats, without leaks: the mean over all tokens
            (including padding) of the last forward pass in training mode. Zero with `train_hard`.
        auxiliary_loss: the hardening loss, h times the sum of `node_entropy`. The paper sums over the batch; with the
            mean, the effect of h does not depend on the batch size.
    """

    shown = ("input_size", "leaf_size", "output_size", "depth", "node_size", "region_leak", "hardening", "train_hard")

    def __init__(
        self,
        input_size: int,
        leaf_size: int,
        output_size: int,
        depth: int,
        node_size: int = 1,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
        region_leak: float = 0.0,
        hardening: float = 0.0,
        train_hard: bool = False,
    ):
        super().__init__(input_size, output_size, activation, dropout)
        check("leaf_size", leaf_size, integer(1))
        check("depth", depth, integer(0, MAX_DEPTH))
        check("node_size", node_size, integer(1))
        check("region_leak", region_leak, FRACTION)
        self.leaf_size, self.node_size = leaf_size, node_size
        self.depth, self.trees = depth, 1
        self.region_leak, self.train_hard = region_leak, train_hard
        leaves, nodes = 2**depth, 2**depth - 1
        self.training_width, self.inference_width = leaves * leaf_size, leaf_size
        self.training_size, self.inference_size = leaves * leaf_size + nodes * node_size, leaf_size + depth * node_size
        self.node_weight_in = nn.Parameter(torch.empty(nodes, node_size, input_size))
        self.node_bias_in = nn.Parameter(torch.empty(nodes, node_size))
        self.node_weight_out = nn.Parameter(torch.empty(nodes, node_size)) if node_size > 1 else None
        self.node_bias_out = nn.Parameter(torch.empty(nodes)) if node_size > 1 else None
        self.leaf_weight_in = nn.Parameter(torch.empty(leaves, leaf_size, input_size))
        self.leaf_bias_in = nn.Parameter(torch.empty(leaves, leaf_size))
        self.leaf_weight_out = nn.Parameter(torch.empty(leaves, leaf_size, output_size))
        self.leaf_bias_out = nn.Parameter(torch.empty(leaves, output_size))
        self.node_entropy = torch.zeros(nodes)
        self.hardening = hardening
        self.reset_parameters()

    @property
    def hardening(self) -> float:
        """The weight of the hardening loss."""
        return self._hardening

    @hardening.setter
    def hardening(self, hardening: float) -> None:
        check("hardening", hardening, at_least(0))
        if self.train_hard and 0 < hardening < math.inf:
            raise ValueError(f"hardening is {hardening}; with train_hard, which trains no nodes, it should be 0")
        self._hardening = hardening
        for name, parameter in self.named_parameters():
            if name.startswith("node_"):
                parameter.requires_grad_(hardening < math.inf)

    def reset_parameters(self) -> None:
        """Initialises the nodes and leaves like layers of `torch.nn.Linear`."""
        init_blocks(*self._leaves())
        init_linear(self.node_weight_in, self.node_bias_in, fan_in=self.input_size)
        if self.node_weight_out is not None and self.node_bias_out is not None:
            init_linear(self.node_weight_out, self.node_bias_out, fan_in=self.node_size)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluates the layer: `(..., input_size)` -> `(..., output_size)`.

        Mixes all leaves in training without `train_hard`, otherwise evaluates one leaf per token. In training, sets
        `node_entropy` and `auxiliary_loss`.
        """
        tokens = self.tokens(x)
        soft = self.training and not self.train_hard
        output = self._mix(tokens) if soft else self._choose(tokens)
        return output.view(*x.shape[:-1], self.output_size)

    def mixture(self, x: Tensor) -> Tensor:
        """Returns each leaf's probability, without leaks: `(..., input_size)` -> `(..., leaves)`, at least float32."""
        mixture = self._mixture(self.node_logits(self.tokens(x)))
        return mixture.view(*x.shape[:-1], mixture.shape[1])

    def node_logits(self, x: Tensor) -> Tensor:
        """Returns each node's logit, without leaks: `(..., input_size)` -> `(..., nodes)`, at least float32."""
        logits = linear(self.tokens(x), self.node_weight_in.flatten(0, 1), self.node_bias_in.flatten())
        if self.node_size > 1:
            hidden = self.activation(logits).unflatten(1, self.node_bias_in.shape)
            logits = (hidden * self.node_weight_out).sum(2) + self.node_bias_out
        logits = at_least_float32(logits)
        return logits.view(*x.shape[:-1], logits.shape[1])

    @torch.no_grad()
    def route(self, x: Tensor) -> Tensor:
        """Returns the hard paths: `(..., input_size)` -> int64 `(..., 1, depth + 1)`, heap indices from the root, 0.

        A token goes right if the logit is positive, without leaks.
        """
        levels = torch.arange(self.depth, -1, -1, device=x.device)
        leaf = self._walk(self.tokens(x)).unsqueeze(1)
        path = ((leaf + 1) >> levels) - 1  # counted from 1, the parent of i is i >> 1
        return path.view(*x.shape[:-1], 1, self.depth + 1)

    def usage(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Counts the tokens `(..., input_size)` at each node and leaf of hard paths: int64 `(nodes,)`, `(leaves,)`."""
        leaves = 2**self.depth
        counts = self.route(x).flatten().bincount(minlength=2 * leaves - 1)
        return counts[: leaves - 1], counts[leaves - 1 :]

    def _leaves(self) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter, nn.Parameter]:
        return self.leaf_weight_in, self.leaf_bias_in, self.leaf_weight_out, self.leaf_bias_out

    def _mix(self, x: Tensor) -> Tensor:
        """Mixes all leaves: `(tokens, input_size)` -> `(tokens, output_size)`."""
        logits = self.node_logits(x)
        self._set_entropy(logits)
        if self.region_leak > 0:
            leaks = torch.rand_like(logits) < self.region_leak
            logits = torch.where(leaks, -logits, logits)  # 1 - sigmoid(z) is sigmoid(-z)
        weight_in, bias_in, weight_out, bias_out = self._leaves()
        hidden = self.activate(linear(x, weight_in.flatten(0, 1), bias_in.flatten()))
        mixture = self._mixture(logits).to(hidden.dtype)
        weighted = hidden.unflatten(1, bias_in.shape) * mixture.unsqueeze(2)
        return torch.addmm(mixture @ bias_out, weighted.flatten(1), weight_out.flatten(0, 1))

    def _mixture(self, logits: Tensor) -> Tensor:
        """`(tokens, nodes)` -> `(tokens, leaves)`: level by level, a node divides its weight between its children."""
        left, right = (-logits).sigmoid(), logits.sigmoid()  # 1 - sigmoid(z) is inaccurate where it is small
        mixture = logits.new_ones(len(logits), 1)
        for level in range(self.depth):
            nodes = slice(2**level - 1, 2 ** (level + 1) - 1)
            mixture = (mixture.unsqueeze(2) * torch.stack((left[:, nodes], right[:, nodes]), dim=2)).flatten(1)
        return mixture

    def _set_entropy(self, logits: Tensor) -> None:
        weight = self.hardening if self.hardening < math.inf else 0.0
        entropy = decision_entropy(logits if weight > 0 else logits.detach())
        entropy = entropy.sum(0) / max(1, len(entropy))
        self.node_entropy = entropy.detach()
        self.auxiliary_loss = weight * entropy.sum()

    def _choose(self, x: Tensor) -> Tensor:
        """Evaluates one leaf per token: `(tokens, input_size)` -> `(tokens, output_size)`."""
        leaf = self._walk(x, self.region_leak if self.training else 0.0) - (2**self.depth - 1)
        if self.training:
            self.node_entropy = torch.zeros_like(self.node_bias_in[:, 0])
            self.auxiliary_loss = self.node_entropy.sum()
        return grouped_feedforward(x, leaf.unsqueeze(1), *self._leaves(), self.activate).squeeze(1)

    @torch.no_grad()
    def _walk(self, x: Tensor, leak: float = 0.0) -> Tensor:
        """`(tokens, input_size)` -> int64 `(tokens,)`, the heap indices of the leaves on hard paths."""
        node = torch.zeros(len(x), 1, dtype=torch.long, device=x.device)
        if self.depth <= ALL_NODES_DEPTH:
            turns = _turns(self.node_logits(x), leak)
            for _ in range(self.depth):
                node = torch.add(turns.gather(1, node), node, alpha=2)
            return node.squeeze(1)
        steps = self.depth
        if self.node_size == 1 and leak == 0:  # FFF's operator finds the path to the last node
            node = ops.route(x, self.node_weight_in.transpose(0, 1), self.node_bias_in.T)[:, 0, -1:]
            steps = 1
        for _ in range(steps):
            node = torch.add(_turns(self._logits_at(node.squeeze(1), x), leak).unsqueeze(1), node, alpha=2)
        return node.squeeze(1)

    def _logits_at(self, node: Tensor, x: Tensor) -> Tensor:
        """Returns the logit of one node per token: int64 `(tokens,)`, `(tokens, input_size)` -> `(tokens,)`."""
        weight = self.node_weight_in[node]
        logits = torch.linalg.vecdot(weight, x.unsqueeze(1).to(weight.dtype)) + self.node_bias_in[node]
        if self.node_weight_out is None or self.node_bias_out is None:
            return logits.squeeze(1)
        return (self.activation(logits) * self.node_weight_out[node]).sum(1) + self.node_bias_out[node]


def _turns(logits: Tensor, leak: float) -> Tensor:
    """Returns int64, 1 to go left and 2 to go right: the child of node i is 2i + 1 or 2i + 2."""
    right = logits > 0
    if leak > 0:
        right ^= torch.rand_like(logits) < leak
    return right + 1
