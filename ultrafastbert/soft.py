"""SoftFFF: a tree that learns a partition of the input space, with a small feedforward network for each region.

- Training mixes the outputs of all leaves by the probabilities of their paths, so decisions have gradients. The mixing
  weights are applied to the hidden activations: all leaves together are two products, as in an ordinary feedforward
  layer of as many neurons, and their outputs one by one are never in memory.
- Inference walks one path and evaluates its leaf, for all tokens of a leaf together.

Nodes and leaves are numbered as in FFF, which is the extreme of this family: there, every node on the path is a neuron
that decides and contributes. docs/soft.md says when to take which.

Source: arXiv 2308.14711, algorithm 1.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import linear, logsigmoid

from .blocks import BlockLayer, check_share, check_whole, grouped_feedforward, init_blocks
from .fff import MAX_DEPTH


class SoftFFF(BlockLayer):
    """A binary tree of decisions, `2^depth - 1` nodes, over `2^depth` leaves, feedforward networks of `leaf_size`.

    Node i has the children 2i + 1 and 2i + 2; its network gives a logit, and the sigmoid of it is the probability of
    the right child. Leaf j has the heap index `2^depth - 1 + j`.

    Args:
        input_size, leaf_size, output_size: a leaf is Linear(input_size, leaf_size), activation, dropout,
            Linear(leaf_size, output_size).
        depth: number of decisions on a path, at least 0; at 0 the layer is an ordinary feedforward layer.
        node_size: 1 makes a node a single linear neuron, so that a boundary is a plane; from 2 on it is
            Linear(input_size, node_size), activation, Linear(node_size, 1).
        activation: a class of elementwise modules, or a function that makes one.
        dropout: probability that a neuron of a leaf is left out, in training.
        region_leak: probability, for each token and node, that the decision p becomes 1 - p, in training.
        hardening: weight h of the hardening loss in `auxiliary_loss`; infinity freezes the nodes.
        train_hard: training evaluates one leaf a token too, that of the hard path; the nodes are not trained.

    Shapes: `(..., input_size)` -> `(..., output_size)`. Parameters: `node_weight_in (nodes, node_size, input_size)`,
    `node_bias_in (nodes, node_size)`; `node_weight_out (nodes, node_size)` and `node_bias_out (nodes,)`, None for
    node_size 1; `leaf_weight_in (leaves, leaf_size, input_size)`, `leaf_bias_in (leaves, leaf_size)`,
    `leaf_weight_out (leaves, leaf_size, output_size)`, `leaf_bias_out (leaves, output_size)`.

    Attributes:
        node_entropy: `(nodes,)`, the batch means of the entropies of the decisions, in nats, in the last forward pass
            in training mode, leaks left aside; zero where training is hard.
        auxiliary_loss: `hardening` times the sum of `node_entropy`. The paper states a sum over the batch; the mean
            makes h independent of the batch's size.

    Raises:
        ValueError: an argument out of range; in the forward pass an x that is not `(..., input_size)`.
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
        sizes = {"input_size": input_size, "leaf_size": leaf_size, "output_size": output_size, "node_size": node_size}
        super().__init__(activation, dropout, **sizes)
        check_whole("depth", depth, 0, MAX_DEPTH)
        check_share("region_leak", region_leak)
        if not hardening >= 0:
            raise ValueError(f"hardening is {hardening}; it should be a number from 0 to infinity")
        if train_hard and 0 < hardening < math.inf:
            raise ValueError(
                f"hardening is {hardening} and train_hard is True; hard decisions have no entropy to lower"
            )
        self.depth, self.trees = depth, 1
        self.region_leak, self.hardening, self.train_hard = region_leak, hardening, train_hard
        leaves = 2**depth
        nodes = leaves - 1
        self.node_weight_in = nn.Parameter(torch.empty(nodes, node_size, input_size))
        self.node_bias_in = nn.Parameter(torch.empty(nodes, node_size))
        self.node_weight_out = nn.Parameter(torch.empty(nodes, node_size)) if node_size > 1 else None
        self.node_bias_out = nn.Parameter(torch.empty(nodes)) if node_size > 1 else None
        self.leaf_weight_in = nn.Parameter(torch.empty(leaves, leaf_size, input_size))
        self.leaf_bias_in = nn.Parameter(torch.empty(leaves, leaf_size))
        self.leaf_weight_out = nn.Parameter(torch.empty(leaves, leaf_size, output_size))
        self.leaf_bias_out = nn.Parameter(torch.empty(leaves, output_size))
        self.training_width, self.inference_width = leaves * leaf_size, leaf_size
        self.training_size, self.inference_size = leaves * leaf_size + nodes * node_size, leaf_size + depth * node_size
        self.node_entropy = torch.zeros(nodes)
        if hardening == math.inf:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(not name.startswith("node_"))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises every node and leaf as `torch.nn.Linear` initialises its layers: uniform, by the fan-in."""
        init_blocks(*self._leaves())
        for parameter, fan_in in (
            (self.node_weight_in, self.input_size),
            (self.node_bias_in, self.input_size),
            (self.node_weight_out, self.node_size),
            (self.node_bias_out, self.node_size),
        ):
            if parameter is not None:
                nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.tokens(x)
        soft = self.training and not self.train_hard
        if self.training and self.train_hard:
            self.node_entropy = torch.zeros_like(self.node_bias_in[:, 0])
            self.auxiliary_loss = self.node_entropy.sum()
        output = self._mix(tokens) if soft else self._evaluate(tokens)
        return output.view(*x.shape[:-1], self.output_size)

    def mixture(self, x: torch.Tensor) -> torch.Tensor:
        """The probabilities of the leaves, without leaks: `(..., input_size)` -> `(..., 2^depth)`, sums of one.

        In float32, or in float64 where x is.
        """
        return self._mixture(self._logits(self.tokens(x))).view(*x.shape[:-1], -1)

    @torch.no_grad()
    def route(self, x: torch.Tensor) -> torch.Tensor:
        """The hard paths: `(..., input_size)` -> int64 `(..., 1, depth + 1)`, heap indices from the root to the leaf."""
        turns = self._walk(self.tokens(x))
        path = (turns.unsqueeze(-1) >> torch.arange(self.depth, -1, -1, device=turns.device)) - 1
        return path.view(*x.shape[:-1], 1, self.depth + 1)

    def usage(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How many of the tokens `(..., input_size)` pass each node, and reach each leaf: int64 `(nodes,)`, `(leaves,)`."""
        nodes = len(self.node_bias_in)
        counts = self.route(x).flatten().bincount(minlength=2 * nodes + 1)
        return counts[:nodes], counts[nodes:]

    def extra_repr(self) -> str:
        return (
            f"input_size={self.input_size}, leaf_size={self.leaf_size}, output_size={self.output_size}, "
            f"depth={self.depth}, node_size={self.node_size}, region_leak={self.region_leak}, "
            f"hardening={self.hardening}, train_hard={self.train_hard}"
        )

    def _leaves(self):
        return self.leaf_weight_in, self.leaf_bias_in, self.leaf_weight_out, self.leaf_bias_out

    def _mix(self, x):
        """The soft forward pass, `(tokens, input_size)` -> `(tokens, output_size)`."""
        logits = self._logits(x)
        self._harden(logits)
        if self.region_leak > 0:  # 1 - sigmoid(z) is sigmoid(-z)
            logits = torch.where(torch.rand_like(logits) < self.region_leak, -logits, logits)
        weight_in, bias_in, weight_out, bias_out = self._leaves()
        hidden = self.activate(linear(x, weight_in.flatten(0, 1), bias_in.flatten()))
        mixture = self._mixture(logits).to(hidden.dtype)
        weighted = hidden.unflatten(1, bias_in.shape) * mixture.unsqueeze(-1)
        return torch.addmm(mixture @ bias_out, weighted.flatten(1), weight_out.flatten(0, 1))

    def _harden(self, logits):
        # H(p) = -p log p - (1-p) log(1-p) = -log p + (1-p) z, with z the logit: exact however hard p is
        entropy = (1 - logits.sigmoid()) * logits - logsigmoid(logits)
        entropy = entropy.sum(0) / max(1, len(logits))
        self.node_entropy = entropy.detach()
        self.auxiliary_loss = (
            self.hardening * entropy.sum() if 0 < self.hardening < math.inf else entropy.new_zeros(())
        )

    def _mixture(self, logits):
        """`(tokens, nodes)` -> `(tokens, leaves)`, level by level: a node passes its weight on to its children."""
        right, left = logits.sigmoid(), (-logits).sigmoid()
        mixture = logits.new_ones(len(logits), 1)
        for level in range(self.depth):
            nodes = slice(2**level - 1, 2 ** (level + 1) - 1)
            children = torch.stack((left[:, nodes], right[:, nodes]), dim=2)
            mixture = (mixture.unsqueeze(2) * children).flatten(1)
        return mixture

    def _logits(self, x):
        """`(tokens, input_size)` -> `(tokens, nodes)`, at least in float32."""
        logits = linear(x, self.node_weight_in.flatten(0, 1), self.node_bias_in.flatten())
        if self.node_size > 1:
            hidden = self.activation(logits).unflatten(1, self.node_bias_in.shape)
            logits = (hidden * self.node_weight_out).sum(2) + self.node_bias_out
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _evaluate(self, x):
        """The hard forward pass, `(tokens, input_size)` -> `(tokens, output_size)`."""
        leaf = self._walk(x) - 2**self.depth
        return grouped_feedforward(x, leaf.unsqueeze(1), *self._leaves(), self.activate).squeeze(1)

    @torch.no_grad()
    def _walk(self, x):
        """`(tokens, input_size)` -> int64 `(tokens,)`, the leaf's number in the heap counted from 1."""
        right = self._logits(x) > 0
        if self.training and self.region_leak > 0:
            right ^= torch.rand_like(x[:, :1].expand_as(right)) < self.region_leak
        node = torch.ones(len(x), 1, dtype=torch.long, device=x.device)
        for _ in range(self.depth):
            node = 2 * node + right.gather(1, node - 1)
        return node.squeeze(1)
