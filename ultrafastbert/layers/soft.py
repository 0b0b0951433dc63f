"""SoftFFF: a tree that learns to divide its input space into regions, with a small feedforward network for each.

- Training mixes the outputs of all leaves by the probabilities of their paths, which gives decisions a gradient. The
  mixture weights are applied to the leaves' hidden neurons, so all leaves together are two products, as an ordinary
  layer of as many neurons would be, and the output of each single leaf is never in memory.
- Inference takes one path and evaluates the leaf at its end, together for all tokens that reach it.

Nodes and leaves are numbered as in FFF. There every node on the path is a neuron that decides and adds to the output;
here nodes only decide and leaves only compute. docs/soft.md says when to take which.

Source: arXiv 2308.14711, algorithm 1.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import linear, softplus

from ultrafastbert import ops
from ultrafastbert.layers.blocks import BlockLayer, grouped_feedforward, init_blocks, init_linear
from ultrafastbert.utils.sizes import MAX_DEPTH
from ultrafastbert.utils.validation import FRACTION, check, integer

ALL_NODES_DEPTH = 6
"""Up to here, inference multiplies a token with all nodes, not with those on its path alone, which on a CPU takes as
long or longer (docs/benchmarks/soft.md)."""


def decision_entropy(logits: torch.Tensor) -> torch.Tensor:
    """The entropy of going right with probability sigmoid(logit), element by element: 0 to log 2. [nats]"""
    # It is even in the logit. With a = |logit| it is -log p + (1 - p) a, two terms of one sign, which stays exact
    # however hard the decision is.
    magnitude = logits.abs()
    return softplus(-magnitude) + (-magnitude).sigmoid() * magnitude


class SoftFFF(BlockLayer):
    """A binary tree of `2^depth - 1` nodes, which decide, over `2^depth` leaves, small feedforward networks.

    Node i has the children 2i + 1 and 2i + 2; its network computes the logit of the probability of the right one.
    Leaf j has the heap index `2^depth - 1 + j`.

    Args:
        input_size, leaf_size, output_size: a leaf is Linear(input_size, leaf_size), activation, dropout,
            Linear(leaf_size, output_size).
        depth: decisions on a path, at least 0; at 0 the layer is an ordinary feedforward layer.
        node_size: at 1 a node is a single linear neuron, and its boundary a plane; above, it is
            Linear(input_size, node_size), activation, Linear(node_size, 1).
        activation: a class of elementwise modules, or a function that makes one.
        dropout: probability that a leaf's neuron is left out in training.
        region_leak: probability that, in training, the decision p of a node about a token becomes 1 - p.
        hardening: weight h of the hardening loss. May be set at any time: `math.inf` freezes the nodes, another value
            thaws them.
        train_hard: train with hard paths, as in inference; then nodes get no gradient.

    Shapes: `(..., input_size)` -> `(..., output_size)`. Parameters: `node_weight_in (nodes, node_size, input_size)`,
    `node_bias_in (nodes, node_size)`; `node_weight_out (nodes, node_size)` and `node_bias_out (nodes,)`, None if
    node_size is 1; `leaf_weight_in (leaves, leaf_size, input_size)`, `leaf_bias_in (leaves, leaf_size)`,
    `leaf_weight_out (leaves, leaf_size, output_size)`, `leaf_bias_out (leaves, output_size)`.

    Attributes:
        node_entropy: `(nodes,)`, how undecided each node was in the last forward pass in training mode: the mean over
            all tokens, padding included, of the entropy of its decision, in nats, leaks disregarded. Zero with
            `train_hard`.
        auxiliary_loss: the hardening loss: h times the sum of `node_entropy`. The paper writes a sum over the batch;
            with the mean, h means the same for batches of all sizes.

    Raises:
        ValueError: an argument out of range; in the forward pass, an x that is not `(..., input_size)`.
    """

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
        return self._hardening

    @hardening.setter
    def hardening(self, hardening: float):
        if not hardening >= 0:
            raise ValueError(f"hardening is {hardening}; it should be a number from 0 to infinity")
        if self.train_hard and 0 < hardening < math.inf:
            raise ValueError(f"hardening is {hardening}; with train_hard, where no node is trained, it should be 0")
        self._hardening = hardening
        for name, parameter in self.named_parameters():
            if name.startswith("node_"):
                parameter.requires_grad_(hardening < math.inf)

    def reset_parameters(self) -> None:
        """Initialises the layers of every node and leaf as `torch.nn.Linear` does, uniformly, according to fan-in."""
        init_blocks(*self._leaves())
        init_linear(self.node_weight_in, self.node_bias_in, fan_in=self.input_size)
        if self.node_size > 1:
            init_linear(self.node_weight_out, self.node_bias_out, fan_in=self.node_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.tokens(x)
        soft = self.training and not self.train_hard
        output = self._mix(tokens) if soft else self._choose(tokens)
        return output.view(*x.shape[:-1], self.output_size)

    def mixture(self, x: torch.Tensor) -> torch.Tensor:
        """The probability of each leaf, leaks disregarded: `(..., input_size)` -> `(..., leaves)`, adding up to 1.

        It is of the dtype of x, and at least float32.
        """
        mixture = self._mixture(self.node_logits(self.tokens(x)))
        return mixture.view(*x.shape[:-1], mixture.shape[1])

    def node_logits(self, x: torch.Tensor) -> torch.Tensor:
        """What every node decides by, leaks disregarded: `(..., input_size)` -> `(..., nodes)`, right if positive.

        Its sigmoid is the probability of the right child. It is of the dtype of x, and at least float32.
        """
        logits = linear(self.tokens(x), self.node_weight_in.flatten(0, 1), self.node_bias_in.flatten())
        if self.node_size > 1:
            hidden = self.activation(logits).unflatten(1, self.node_bias_in.shape)
            logits = (hidden * self.node_weight_out).sum(2) + self.node_bias_out
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.view(*x.shape[:-1], logits.shape[1])

    @torch.no_grad()
    def route(self, x: torch.Tensor) -> torch.Tensor:
        """The hard paths: `(..., input_size)` -> int64 `(..., 1, depth + 1)` of heap indices, from the root, 0.

        A token goes right where the logit is positive; leaks are disregarded.
        """
        levels = torch.arange(self.depth, -1, -1, device=x.device)
        leaf = self._walk(self.tokens(x)).unsqueeze(1)
        path = ((leaf + 1) >> levels) - 1  # counted from 1, the parent of i is i >> 1
        return path.view(*x.shape[:-1], 1, self.depth + 1)

    def usage(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How many of the tokens `(..., input_size)` pass through each node and end at each leaf, on hard paths.

        Returns:
            int64 `(nodes,)` and `(leaves,)`.
        """
        leaves = 2**self.depth
        counts = self.route(x).flatten().bincount(minlength=2 * leaves - 1)
        return counts[: leaves - 1], counts[leaves - 1 :]

    def extra_repr(self) -> str:
        return (
            f"input_size={self.input_size}, leaf_size={self.leaf_size}, output_size={self.output_size}, "
            f"depth={self.depth}, node_size={self.node_size}, region_leak={self.region_leak}, "
            f"hardening={self.hardening}, train_hard={self.train_hard}"
        )

    def _leaves(self):
        return self.leaf_weight_in, self.leaf_bias_in, self.leaf_weight_out, self.leaf_bias_out

    # soft: `(tokens, input_size)` -> `(tokens, output_size)` through all leaves

    def _mix(self, x):
        logits = self.node_logits(x)
        self._measure_hardness(logits)
        if self.region_leak > 0:
            leaks = torch.rand_like(logits) < self.region_leak
            logits = torch.where(leaks, -logits, logits)  # 1 - sigmoid(z) is sigmoid(-z)
        weight_in, bias_in, weight_out, bias_out = self._leaves()
        hidden = self.activate(linear(x, weight_in.flatten(0, 1), bias_in.flatten()))
        mixture = self._mixture(logits).to(hidden.dtype)
        weighted = hidden.unflatten(1, bias_in.shape) * mixture.unsqueeze(2)
        return torch.addmm(mixture @ bias_out, weighted.flatten(1), weight_out.flatten(0, 1))

    def _mixture(self, logits):
        """`(tokens, nodes)` -> `(tokens, leaves)`: level by level, a node divides its weight between its children."""
        left, right = (-logits).sigmoid(), logits.sigmoid()  # 1 - sigmoid(z) would lose the digits of what is small
        mixture = logits.new_ones(len(logits), 1)
        for level in range(self.depth):
            nodes = slice(2**level - 1, 2 ** (level + 1) - 1)
            mixture = (mixture.unsqueeze(2) * torch.stack((left[:, nodes], right[:, nodes]), dim=2)).flatten(1)
        return mixture

    def _measure_hardness(self, logits):
        weight = self.hardening if self.hardening < math.inf else 0.0
        entropy = decision_entropy(logits if weight > 0 else logits.detach())
        entropy = entropy.sum(0) / max(1, len(entropy))
        self.node_entropy = entropy.detach()
        self.auxiliary_loss = weight * entropy.sum()

    # hard: `(tokens, input_size)` -> `(tokens, output_size)` through one leaf

    def _choose(self, x):
        leaf = self._walk(x, self.region_leak if self.training else 0.0) - (2**self.depth - 1)
        if self.training:
            self.node_entropy = torch.zeros_like(self.node_bias_in[:, 0])
            self.auxiliary_loss = self.node_entropy.sum()
        return grouped_feedforward(x, leaf.unsqueeze(1), *self._leaves(), self.activate).squeeze(1)

    @torch.no_grad()
    def _walk(self, x, leak=0.0):
        """`(tokens, input_size)` -> int64 `(tokens,)`, the heap indices of the leaves on hard paths."""
        node = torch.zeros(len(x), 1, dtype=torch.long, device=x.device)
        if self.depth <= ALL_NODES_DEPTH:
            turns = _turns(self.node_logits(x), leak)
            for _ in range(self.depth):
                node = torch.add(turns.gather(1, node), node, alpha=2)
            return node.squeeze(1)
        steps = self.depth
        if self.node_size == 1 and leak == 0:  # but for the last decision, the nodes are such a tree as FFF has
            node = ops.route(x, self.node_weight_in.transpose(0, 1), self.node_bias_in.T)[:, 0, -1:]
            steps = 1
        for _ in range(steps):
            node = torch.add(_turns(self._logits_at(node.squeeze(1), x), leak).unsqueeze(1), node, alpha=2)
        return node.squeeze(1)

    def _logits_at(self, node, x):
        """Of one node a token: int64 `(tokens,)`, `(tokens, input_size)` -> `(tokens,)`."""
        weight = self.node_weight_in[node]
        logits = torch.linalg.vecdot(weight, x.unsqueeze(1).to(weight.dtype)) + self.node_bias_in[node]
        if self.node_size == 1:
            return logits.squeeze(1)
        return (self.activation(logits) * self.node_weight_out[node]).sum(1) + self.node_bias_out[node]


def _turns(logits, leak):
    """What a decision adds to twice the index of its node: int64, 1 to go left and 2 to go right."""
    right = logits > 0
    if leak > 0:
        right ^= torch.rand_like(logits) < leak
    return right + 1
