"""Fitting the student's feedforward layers one after the other, by regression.

Teacher and student run side by side, a layer at a time, on the same tokens. The student's layer sees the student's own
states, with the errors of the layers before it, and learns what makes its states those of the teacher. Fitted to the
teacher's inputs alone, layers multiply each other's errors.

In a trained encoder, the outputs of a few tokens are many times as large as those of all others. In the loss each
token has the weight 1 / (1 + its squared output, relative to the mean), so that the fit is not one to these alone.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from ultrafastbert.distillation.arguments import FitArguments
from ultrafastbert.distillation.texts import Sequences
from ultrafastbert.layers.fff import FFF
from ultrafastbert.layers.hard import HardFFF
from ultrafastbert.modeling_ultrafastbert import Angles, UltraFastBertDense, UltraFastBertLayer, UltraFastBertModel
from ultrafastbert.runs.interrupts import Interrupt

SPLIT_TOKENS = 100_000
"""The most tokens that decisions are made from."""
VALIDATION = 0.1
"""Of the tokens, to measure the error on."""


class SideBySide:
    """Teacher and student on the same tokens, a layer at a time.

    States are kept in files, which memory need not hold: 8 bytes for each token and column.

    Args:
        teacher: an encoder, in evaluation mode.
        student: one that has the same parts but for its feedforward layers.
        sequences: to run; batches are repeated if they have too few tokens.
        tokens: to run at least, padding not counted.
        directory: for the files.

    Attributes:
        inputs: bfloat16 `(tokens, hidden)`, what the student's feedforward layer sees after `attend`.
        targets: bfloat16 `(tokens, hidden)`, what it should add, so that its states become those of the teacher.
    """

    def __init__(
        self,
        teacher: UltraFastBertModel,
        student: UltraFastBertModel,
        sequences: Sequences,
        tokens: int,
        directory: Path,
    ):
        self.models = (teacher, student)
        self.layers = [layers_of(model) for model in self.models]
        self.batches: list[tuple[Tensor, Angles | None, slice]] = []  # mask, rotary positions, place in the files
        batches, end = [], 0
        while end < tokens:
            batches.append(sequences.batch(len(batches)))
            end += batches[-1].tokens
        self.states = [self._file(directory / name, end) for name in ("teacher", "student")]
        self.inputs, self.targets = self._file(directory / "inputs", end), self._file(directory / "targets", end)
        start = 0
        for batch in batches:
            mask = batch.attention_mask.to(teacher.device)
            place = slice(start, start := start + batch.tokens)
            with torch.no_grad():
                for model, states in zip(self.models, self.states, strict=True):
                    embedded, angles = model.embed(batch.input_ids.to(teacher.device), mask)
                    states[place] = embedded[mask.bool()]
            self.batches.append((mask, angles, place))

    def _file(self, path: Path, tokens: int) -> Tensor:
        hidden = self.models[0].config.hidden_size
        return torch.from_file(str(path), True, tokens * hidden, dtype=torch.bfloat16).view(tokens, hidden)

    @torch.no_grad()
    def attend(self, index: int) -> None:
        """Runs the first half of a layer, after which `inputs` and `targets` are those of its feedforward layer."""
        teacher, student = (layers[index] for layers in self.layers)
        for mask, angles, place in self.batches:
            after = []
            for layer, states in zip((teacher, student), self.states, strict=True):
                padded = torch.zeros(*mask.shape, states.shape[1], device=mask.device)
                padded[mask.bool()] = states[place].to(padded)
                attention_mask = create_bidirectional_mask(
                    config=self.models[0].config, inputs_embeds=padded, attention_mask=mask
                )
                after.append(layer.attend(padded, attention_mask, angles)[mask.bool()])
                states[place] = after[-1]
            update = teacher.feed_forward(teacher.feedforward_input(after[0]))
            self.inputs[place] = student.feedforward_input(after[1])
            self.targets[place] = after[0] + update - after[1]

    @torch.no_grad()
    def feed_forward(self, index: int) -> None:
        """Runs the second half of a layer."""
        for layers, states in zip(self.layers, self.states, strict=True):
            layer = layers[index]
            for mask, _, place in self.batches:
                after = states[place].to(mask.device, torch.float32)
                states[place] = layer.add_update(after, layer.feed_forward(layer.feedforward_input(after)))


def layers_of(encoder: UltraFastBertModel) -> list[UltraFastBertLayer]:
    """The layers of an encoder, typed."""
    return [layer for layer in encoder.layers if isinstance(layer, UltraFastBertLayer)]


class LayerFit:
    """The fit of one feedforward layer of a student.

    Both inputs and outputs are standardised during the fit, because their channels differ much in size; the layer's
    weights then take this up, so that it maps inputs as they are to outputs as they are.

    Args:
        layer: of the student; it has a skip.
        x: `(tokens, hidden)`, its inputs.
        y: `(tokens, hidden)`, the outputs that it should have.
        arguments: of the fit.
    """

    def __init__(self, layer: UltraFastBertLayer, x: Tensor, y: Tensor, arguments: FitArguments):
        assert layer.skip is not None
        self.layer, self.skip, self.arguments = layer, layer.skip, arguments
        x, y = (tensor.to(layer.skip.bias.device, torch.float32) for tensor in (x, y))
        dense = layer.feedforward
        has_no_bias = isinstance(dense, UltraFastBertDense) and dense.up_proj.bias is None
        self.center = torch.zeros_like(x[0]) if has_no_bias else x.mean(0)
        width = (x - self.center).square().mean(0).sqrt()
        self.width = width.clamp(min=1e-3 * float(width.mean()) + 1e-12)
        self.shift = y.mean(0)
        self.scale = (y - self.shift).square().mean().sqrt().clamp(min=1e-12)
        self.x, self.y = (x - self.center) / self.width, (y - self.shift) / self.scale
        self.weights = 1 / (1 + self.y.square().mean(1, keepdim=True))  # (tokens, 1)
        self.train = len(x) - max(1, round(VALIDATION * len(x)))

    def run(self, interrupt: Interrupt) -> float | None:
        """Fits the layer; returns the weighted fraction of the outputs' variance that it leaves unexplained.

        The fraction is that of tokens that were not trained on. None: a signal arrived.
        """
        self._start()
        if not self._train(interrupt):
            return None
        with torch.no_grad():
            error = size = 0.0
            for start in range(self.train, len(self.x), 4096):
                x, y, w = (tensor[start : start + 4096] for tensor in (self.x, self.y, self.weights))
                error += (w * (self.layer.feed_forward(x) - y).square()).sum().item()
                size += (w * y.square()).sum().item()
            self._fold()
        return error / max(size, 1e-12)

    @torch.no_grad()
    def _start(self) -> None:
        """Starts from a regression by channel, a layer whose output is small, and decisions made from the inputs."""
        x, y, w = self.x[: self.train], self.y[: self.train], self.weights[: self.train]
        self.skip.factor.copy_((w * x * y).sum(0) / (w * x * x).sum(0))
        self.skip.bias.zero_()
        feedforward = self.layer.feedforward
        if isinstance(feedforward, UltraFastBertDense):  # as trees start
            nn.init.normal_(feedforward.up_proj.weight, std=1 / math.sqrt(x.shape[1]))
            nn.init.normal_(feedforward.down_proj.weight, std=0.02)
        elif isinstance(feedforward, FFF | HardFFF):
            feedforward.reset_parameters()
        if isinstance(feedforward, HardFFF):
            feedforward.split_by_variance(x[:SPLIT_TOKENS])

    def _train(self, interrupt: Interrupt) -> bool:
        """False if a signal arrived."""
        arguments, layer = self.arguments, self.layer
        parts = [part for part in (layer.feedforward, layer.skip) if part is not None]
        trained = [p for part in parts for p in part.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, arguments.lr, betas=(0.9, 0.99), fused=True)
        for step in range(arguments.steps):
            if interrupt.signal is not None:
                return False
            part = step / arguments.steps
            optimizer.param_groups[0]["lr"] = arguments.lr * min(1.0, 20 * part) * (1 - part)
            batch = torch.randint(self.train, (arguments.batch_size,)).to(self.x.device)
            error = (layer.feed_forward(self.x[batch]) - self.y[batch]).square()
            (self.weights[batch] * error).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return True

    def _fold(self) -> None:
        """Moves the standardisation into the weights: layer(x) = scale * fitted((x - center) / width) + shift."""
        center, scale, factor = self.center / self.width, self.scale, self.skip.factor.clone()
        self.skip.factor.copy_(factor * scale / self.width)
        self.skip.bias.copy_(scale * (self.skip.bias - factor * center) + self.shift)
        for weight, bias in input_weights(self.layer.feedforward):
            if bias is not None:
                bias.sub_((weight @ center).view(bias.shape))
            weight.div_(self.width)
        for tensor in output_weights(self.layer.feedforward):
            tensor.mul_(scale)


def input_weights(layer: nn.Module | None) -> list[tuple[Tensor, Tensor | None]]:
    """The weights `(..., hidden)` of a feedforward layer that are multiplied with its input, and their biases."""
    if isinstance(layer, FFF):
        return [(layer.weight_in, layer.bias_in)]
    if isinstance(layer, HardFFF):
        return [(layer.node_weight_in, layer.node_bias_in), (layer.leaf_weight_in, layer.leaf_bias_in)]
    return [(layer.up_proj.weight, layer.up_proj.bias)] if isinstance(layer, UltraFastBertDense) else []


def output_weights(layer: nn.Module | None) -> list[Tensor]:
    """The weights and biases of a feedforward layer in which its output is linear."""
    if isinstance(layer, FFF):
        return [layer.weight_out]
    if isinstance(layer, HardFFF):
        return [layer.leaf_weight_out, layer.leaf_bias_out]
    if isinstance(layer, UltraFastBertDense):
        return [tensor for tensor in (layer.down_proj.weight, layer.down_proj.bias) if tensor is not None]
    return []
