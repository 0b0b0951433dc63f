"""Fits feedforward layers of several sizes to those of a trained encoder: how much of what they compute is lost?

    python scripts/fit_layers.py --model DIR --source texts.txt --sizes '[none, dense-64, 1x11, 1x7x32]'

The model is a BERT of transformers or an encoder of this package with dense layers. Inputs and outputs of each layer
are recorded on texts, and a layer of each size learns the outputs from the inputs by regression. Beside it, every size
has a bias and a factor for each channel, which is all that `none` has. The result is the fraction of the outputs'
variance that stays unexplained on texts that were not trained on. Tokens with the largest outputs are dropped: in
BERT, one token in twenty holds most of the variance, and a fit to all would be a fit to these.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import ultrafastbert  # noqa: F401  # registers its models
from ultrafastbert.cli import parse_arguments
from ultrafastbert.inspection.loading import read_texts
from ultrafastbert.layers.fff import FFF
from ultrafastbert.layers.hard import HardFFF
from ultrafastbert.layers.replace import build_feedforward
from ultrafastbert.runs.environment import environment
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import write_atomically
from ultrafastbert.utils.progress import track
from ultrafastbert.utils.sizes import DenseSize, parse_size
from ultrafastbert.utils.tables import markdown_table
from ultrafastbert.utils.validation import NOT_EMPTY, POSITIVE, PROPER_FRACTION, Rule, check, check_fields, integer

TEXTS_AT_ONCE = 32


@dataclass
class FitArguments:
    """Which layers are fitted, and how."""

    model: str = ""
    """Directory or Hub id of the encoder."""
    source: list[str] = field(default_factory=list)
    """Files of texts: lines (.txt), objects or rows with a field text (.jsonl, .parquet), also compressed."""
    sizes: list[str] = field(default_factory=lambda: ["none", "dense-64", "1x11", "1x7x32"])
    """Sizes to fit, as --model.fff of pretraining has them."""
    layers: list[int] | None = None
    """Layers to fit, from 0; all by default."""
    tokens: int = 500_000
    """Tokens to record, the last tenth of which is for validation. [tokens]"""
    max_length: int = 64
    """Texts are cut to this length. [tokens]"""
    drop: float = 0.05
    """Tokens that are dropped, those with the largest outputs. [fraction, 0 to 1]"""
    steps: int = 1500
    """Steps of Adam for each fit."""
    batch_size: int = 1024
    """Tokens in a step. [tokens]"""
    lr: float = 3e-3
    """Adam's learning rate at its peak."""
    seeds: int = 1
    """Fits of each size."""
    output_dir: str = "out/fit"
    """Where fit.md and fit.json are written."""

    def __post_init__(self):
        check_fields(self, NOT_EMPTY, "model", "source", "sizes", "output_dir")
        check_fields(self, POSITIVE, "tokens", "max_length", "steps", "batch_size", "lr", "seeds")
        check("drop", self.drop, Rule(lambda value: value == 0 or PROPER_FRACTION.holds(value), "0 or a fraction"))
        for layer in self.layers or []:
            check("layers", layer, integer(0))
        for size in self.sizes:
            parse_size(size, "sizes")


class Fitted(nn.Module):
    """A layer of some size with a factor and a bias for each channel beside it: `(tokens, hidden)` -> the same."""

    def __init__(self, size: str, x: Tensor, y: Tensor):
        super().__init__()
        factor = (x * y).mean(0) / x.square().mean(0)
        self.factor, self.bias = nn.Parameter(factor), nn.Parameter(torch.zeros(x.shape[1]))
        self.layer = build(size, x)

    def forward(self, x: Tensor) -> Tensor:
        """`(tokens, hidden)` -> `(tokens, hidden)`."""
        return x * self.factor + self.bias + self.layer(x)


def build(text: str, x: Tensor) -> nn.Module:
    """A layer of this size for inputs such as `x (tokens, hidden)`."""
    size, hidden = parse_size(text), x.shape[1]
    if isinstance(size, DenseSize):  # a tree of depth 0 is a dense layer, and starts as trees do
        return FFF(hidden, depth=0, trees=size.neurons)
    layer = build_feedforward(text, hidden)
    if isinstance(layer, HardFFF):
        layer.split_by_variance(x[:100_000])
    return layer


def feedforward_layers(model: PreTrainedModel) -> list[tuple[nn.Module, nn.Module]]:
    """For each layer of an encoder the modules whose input and output are those of its feedforward layer.

    Raises:
        UserError: the layers have another form.
    """
    layers = getattr(getattr(model, "encoder", model), "layer", None) or getattr(model, "layers", None)
    found = []
    for layer in layers if isinstance(layers, nn.ModuleList) else []:
        if isinstance(getattr(layer, "feedforward", None), nn.Module):
            found.append((layer.feedforward, layer.feedforward))
            continue
        first, last = getattr(layer, "intermediate", None), getattr(getattr(layer, "output", None), "dense", None)
        if isinstance(first, nn.Module) and isinstance(last, nn.Module):
            found.append((first, last))
    if not found:
        raise UserError(f"model is a {type(model).__name__}; it should be BERT or an encoder of this package")
    return found


@contextmanager
def recording(layer: tuple[nn.Module, nn.Module], mask: list[Tensor]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """A context in which inputs and outputs of real tokens, where `mask[0]` is set, are recorded."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def note_input(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs.append(arguments[0][mask[0]])

    def note_output(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append(output[mask[0]])

    handles = [layer[0].register_forward_pre_hook(note_input), layer[1].register_forward_hook(note_output)]
    try:
        yield inputs, outputs
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def record(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    layer: tuple[nn.Module, nn.Module],
    texts: list[str],
    arguments: FitArguments,
) -> tuple[Tensor, Tensor]:
    """Inputs and outputs of a layer, both `(tokens, hidden)`.

    Inputs have mean 0 and variance 1 in each channel, outputs mean 0 in each channel and variance 1 on average.
    """
    mask: list[Tensor] = [torch.empty(0)]
    with recording(layer, mask) as (inputs, outputs):
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            options = {"truncation": True, "max_length": arguments.max_length, "return_tensors": "pt"}
            batch = tokenizer(texts[start : start + TEXTS_AT_ONCE], padding=True, **options)
            mask[0] = batch["attention_mask"].bool()
            model(**batch)
            if sum(map(len, inputs)) >= arguments.tokens:
                break
    x, y = torch.cat(inputs)[: arguments.tokens], torch.cat(outputs)[: arguments.tokens]
    size = y.norm(dim=1)
    kept = size <= size.sort().values[round((1 - arguments.drop) * (len(size) - 1))]
    x, y = x[kept], y[kept]
    return (x - x.mean(0)) / x.std(0), (y - y.mean(0)) / y.var(0).mean().sqrt()


def fit(size: str, x: Tensor, y: Tensor, arguments: FitArguments, seed: int) -> float:
    """The fraction of the variance of the last tenth of `y` that a layer of this size leaves unexplained."""
    torch.manual_seed(seed)
    train = len(x) - len(x) // 10
    model = Fitted(size, x[:train], y[:train])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, arguments.lr, betas=(0.9, 0.99), fused=True)
    for step in range(arguments.steps):
        part = step / arguments.steps
        optimizer.param_groups[0]["lr"] = arguments.lr * min(1.0, 20 * part) * (1 - part)
        batch = torch.randint(train, (arguments.batch_size,))
        (model(x[batch]) - y[batch]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        parts = zip(x[train:].split(1024), y[train:].split(1024), strict=True)
        error = sum((model(inputs) - outputs).square().sum().item() for inputs, outputs in parts)
    return error / y[train:].square().sum().item()


def main(arguments: FitArguments) -> None:
    """Fits all sizes to all layers, prints a table and writes it.

    Raises:
        UserError: a model, layer or file that cannot be used, or too few texts.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        model = AutoModel.from_pretrained(arguments.model).eval()
    except (OSError, ValueError) as error:
        raise UserError(f"model {arguments.model} cannot be loaded: {error}") from error
    layers = feedforward_layers(model)
    chosen = list(range(len(layers))) if arguments.layers is None else arguments.layers
    check("layers", max(chosen), integer(0, len(layers) - 1), UserError)
    texts = read_texts(arguments.source, None)
    if not texts:
        raise UserError(f"source is {', '.join(arguments.source)}; these files have no texts")
    results = []
    for index in chosen:
        x, y = record(model, tokenizer, layers[index], texts, arguments)
        if len(x) < 10 * arguments.batch_size:
            raise UserError(f"source has {len(x):,} tokens; it should have at least {10 * arguments.batch_size:,}")
        for size in track(arguments.sizes, f"layer {index}", "size"):
            values = [fit(size, x, y, arguments, seed) for seed in range(arguments.seeds)]
            results.append({"layer": index, "size": size, "used": parse_size(size).used, "unexplained": values})
    rows = []
    for size in arguments.sizes:
        found = [result["unexplained"] for result in results if result["size"] == size]
        rows.append(
            (size, parse_size(size).used, *(", ".join(f"{value:.3f}" for value in values) for values in found))
        )
    table = markdown_table(("size", "neurons used", *(f"layer {index}" for index in chosen)), rows)
    output = Path(arguments.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment(torch.device("cpu"), "transformers"), "results": results}
    write_atomically(output / "fit.json", json.dumps(content, indent=1) + "\n")
    write_atomically(output / "fit.md", table + "\n")
    print(f"\n{table}\n\nwritten: {output / 'fit.md'}, {output / 'fit.json'}")


if __name__ == "__main__":
    try:
        main(
            parse_arguments(FitArguments, sys.argv[1:], "fit_layers.py", "Fits layers to those of a trained encoder.")
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
