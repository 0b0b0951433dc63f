"""Times of a forward pass against the number of blocks: leaves of a tree, experts of a mixture.

A tree looks at one node a level to find its leaf, a mixture at all of its gates to find its expert, and a plain layer
multiplies with everything. Tree and mixture have blocks of one width and use one of them; the mixture's k is 1, with
which it could not be trained, so that nothing but the way to the block differs (arXiv 2308.14711, "Inference speed
comparison"). Weights are random, so inputs spread over the blocks.
"""

import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from ultrafastbert.experiments.arguments import TimingArguments
from ultrafastbert.experiments.candidates import Layer
from ultrafastbert.experiments.sweep import environment, read_result, write_result
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.timing import take_turns


def time_layers(arguments: TimingArguments, output: Path, device: str) -> list[dict]:
    """Times the layers for each size of batch and number of blocks that has no result yet.

    Args:
        arguments: what is timed.
        output: directory of the comparison.
        device: `cpu` or `cuda`.

    Returns:
        A result for each case: `batch_size`, `blocks`, and `times`: for each kind of layer that is timed there, the
        `mean`, `median`, `deviation` (standard, of single calls) in milliseconds and the number of `calls`; besides
        `settings` and `environment`.

    Raises:
        UserError: a file that is not the result of these settings.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        cases = [(batch_size, blocks) for batch_size in arguments.batch_sizes for blocks in arguments.blocks]
        return [_case(arguments, *case, output, device) for case in tqdm(cases, desc="timing")]
    finally:
        torch.set_num_threads(threads)


def check_timing(arguments: TimingArguments) -> None:
    """Raises a UserError if a size is none, or a number of blocks no power of 2."""
    for name, value in vars(arguments).items():
        values = value if isinstance(value, list) else [value]
        if not values or min(values) <= 0:
            raise UserError(f"timing.{name} is {value}; it should be more than 0")
    for blocks in arguments.blocks:
        if blocks & (blocks - 1):
            raise UserError(f"timing.blocks has {blocks}; it should be a power of 2")


def _case(arguments: TimingArguments, batch_size: int, blocks: int, output: Path, device: str) -> dict:
    path = output / "runs" / "timing" / f"batch-{batch_size}-blocks-{blocks}.json"
    names = ("block_size", "hidden_size", "feedforward_blocks", "threads", "seconds")
    settings = {name: getattr(arguments, name) for name in names}
    settings |= {"batch_size": batch_size, "blocks": blocks, "device": device}
    result = read_result(path, settings)
    if result is None:
        layers = build_layers(arguments, blocks, device)
        x = torch.randn(batch_size, arguments.hidden_size, device=device)
        calls = {kind: _call(layer, x) for kind, layer in layers.items()}
        times = take_turns(calls, arguments.seconds, device=device)
        result = {"batch_size": batch_size, "blocks": blocks, "settings": settings}
        result |= {"times": {kind: _summary(values) for kind, values in times.items()}}
        write_result(path, result | {"environment": environment(device)})
        result = read_result(path, settings)
    return result


def build_layers(arguments: TimingArguments, blocks: int, device: str) -> dict[str, nn.Module]:
    """A layer of each kind that is timed at so many blocks, of random weights, in evaluation mode."""
    torch.manual_seed(0)
    width = blocks * arguments.block_size
    layers = {"moe": Layer("moe", width, arguments.block_size, k=1), "fff": Layer("fff", width, arguments.block_size)}
    if blocks <= arguments.feedforward_blocks:
        layers["ff"] = Layer("ff", width, width)
    with torch.device(device):
        modules = {kind: layer.build(*2 * [arguments.hidden_size]).eval() for kind, layer in layers.items()}
        nn.init.normal_(modules["moe"].gate_weight)  # it starts from zero, with which all inputs take one expert
    return modules


def _call(layer: nn.Module, x: torch.Tensor) -> Callable:
    def call():
        with torch.inference_mode():
            layer(x)

    return call


def _summary(seconds: list[float]) -> dict[str, float]:
    milliseconds = [1e3 * value for value in seconds]
    return {
        "mean": statistics.mean(milliseconds),
        "median": statistics.median(milliseconds),
        "deviation": statistics.pstdev(milliseconds),
        "calls": len(milliseconds),
    }
