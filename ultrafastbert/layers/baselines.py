"""Baselines for soft trees, with the same interface: a feedforward layer and a mixture of experts."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from ultrafastbert.layers.blocks import BlockLayer, grouped_feedforward, init_blocks
from ultrafastbert.ops.reference import at_least_float32
from ultrafastbert.utils.validation import NOT_NEGATIVE, check, integer

LEAST_NOISE = 1e-6  # least standard deviation of a gate's noise, so that the probability in the load loss is defined


class FeedForward(BlockLayer):
    """Linear(input_size, width), activation, dropout, Linear(width, output_size)."""

    def __init__(
        self,
        input_size: int,
        width: int,
        output_size: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
    ):
        super().__init__(input_size, output_size, activation, dropout)
        check("width", width, integer(1))
        self.width = width
        self.training_width = self.inference_width = self.training_size = self.inference_size = width
        self.expand = nn.Linear(input_size, width)
        self.contract = nn.Linear(width, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluates the layer: `(..., input_size)` -> `(..., output_size)`."""
        output = self.contract(self.activate(self.expand(self.tokens(x))))
        return output.view(*x.shape[:-1], self.output_size)


class MixtureOfExperts(BlockLayer):
    """The sparsely gated mixture of experts, small feedforward networks of which each token uses the k best.

    A linear gate scores the experts. In training, noise with a learned standard deviation is added to the scores. The
    softmax over the k highest scores weights the experts' outputs. Two losses keep all experts in use: the squared
    coefficients of variation of the experts' importance (the sum of their weights over the batch) and of their load (a
    smooth estimate of their number of tokens).

    Args:
        input_size, expert_size, output_size: an expert is Linear(input_size, expert_size), activation, dropout,
            Linear(expert_size, output_size).
        experts: number of experts.
        k: number of experts that a token uses, from 1 to `experts`. With 1 the weight is always 1, so the output gives
            the gate no gradient.
        activation, dropout: as in `BlockLayer`.
        importance, load: weights of the two losses in `auxiliary_loss`.

    The sizes of `BlockLayer` include one neuron per expert for its score. Parameters: `gate_weight` and `noise_weight`
    `(experts, input_size)`, and those of the experts, `expert_*`, as in `grouped_feedforward`.

    Source: Shazeer et al. 2017, arXiv 1701.06538, equations 3 to 5 (gate), 6 and 7 (importance), 8 to 11 (load).
    """

    shown = ("input_size", "expert_size", "output_size", "experts", "k", "importance", "load")

    def __init__(
        self,
        input_size: int,
        expert_size: int,
        output_size: int,
        experts: int,
        k: int = 2,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
        importance: float = 0.1,
        load: float = 0.1,
    ):
        super().__init__(input_size, output_size, activation, dropout)
        check("expert_size", expert_size, integer(1))
        check("experts", experts, integer(1))
        check("k", k, integer(1, experts))
        check("importance", importance, NOT_NEGATIVE)
        check("load", load, NOT_NEGATIVE)
        self.expert_size, self.experts = expert_size, experts
        self.k, self.importance, self.load = k, importance, load
        self.gate_weight = nn.Parameter(torch.empty(experts, input_size))
        self.noise_weight = nn.Parameter(torch.empty(experts, input_size))
        self.expert_weight_in = nn.Parameter(torch.empty(experts, expert_size, input_size))
        self.expert_bias_in = nn.Parameter(torch.empty(experts, expert_size))
        self.expert_weight_out = nn.Parameter(torch.empty(experts, expert_size, output_size))
        self.expert_bias_out = nn.Parameter(torch.empty(experts, output_size))
        self.training_width, self.inference_width = experts * expert_size, k * expert_size
        self.training_size, self.inference_size = self.training_width + experts, self.inference_width + experts
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises experts like `torch.nn.Linear`, and the gate with zeros (arXiv 1701.06538, appendix A)."""
        init_blocks(*self._experts())
        nn.init.zeros_(self.gate_weight)
        nn.init.zeros_(self.noise_weight)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluates the layer: `(..., input_size)` -> `(..., output_size)`. In training, sets `auxiliary_loss`."""
        tokens = self.tokens(x)
        gates, chosen = self._gate(tokens)
        outputs = grouped_feedforward(tokens, chosen, *self._experts(), self.activate)
        output = (outputs * gates.unsqueeze(-1).to(outputs.dtype)).sum(1)
        return output.view(*x.shape[:-1], self.output_size)

    def _experts(self) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter, nn.Parameter]:
        return self.expert_weight_in, self.expert_bias_in, self.expert_weight_out, self.expert_bias_out

    def _gate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns weights and indices of the chosen experts, both `(tokens, k)`. In training, sets the losses."""
        clean = scores = at_least_float32(linear(x, self.gate_weight))
        if self.training:
            noise = softplus(at_least_float32(linear(x, self.noise_weight))).clamp(min=LEAST_NOISE)
            scores = clean + torch.randn_like(clean) * noise
        highest, ranking = scores.topk(min(self.k + 1, self.experts), dim=1)
        gates, chosen = highest[:, : self.k].softmax(1), ranking[:, : self.k]
        if self.training:
            importance = torch.zeros_like(scores).scatter(1, chosen, gates).sum(0)
            load = self._probability_chosen(clean, noise, scores, highest).sum(0)
            variations = _squared_variation(importance), _squared_variation(load)
            self.auxiliary_loss = self.importance * variations[0] + self.load * variations[1]
        return gates, chosen

    def _probability_chosen(self, clean: Tensor, noise: Tensor, scores: Tensor, highest: Tensor) -> Tensor:
        """Returns the probability that a token chooses an expert if only its noise is redrawn: `(tokens, experts)`.

        An expert is chosen if its score exceeds the k-th highest of the others. For an expert that is chosen now, this
        is the (k+1)-th highest of all; for another one, the k-th highest of all.
        """
        if self.k == self.experts:
            return torch.ones_like(clean)
        k_th, next_one = highest[:, self.k - 1, None], highest[:, self.k, None]
        threshold = torch.where(scores > next_one, next_one, k_th)
        return torch.special.ndtr((clean - threshold) / noise)


def _squared_variation(values: Tensor) -> Tensor:
    """Returns the squared coefficient of variation, variance over squared mean, of `(experts,)`; 0 if all are zero."""
    return values.var(correction=0) / values.mean().square().clamp(min=torch.finfo(values.dtype).tiny)
