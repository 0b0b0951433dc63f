"""Times SoftFFF against the layer of pip's `fastfeedforward`, with equal weights: a table and a JSON file.

Before anything is timed, the two layers' outputs are compared. Output biases of leaves are zero, because inference in
fastfeedforward 0.2.1 leaves them out. The layers take turns; ratios are of medians.

A second table times the two ways to find a token's leaf, which is what `SoftFFF` chooses between by its depth.
"""

import json
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

import torch
from tqdm import tqdm

from ultrafastbert import SoftFFF
from ultrafastbert.layers import soft
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.hardware import processor
from ultrafastbert.utils.timing import take_turns

PEER = "fastfeedforward"
MOST_WORK = 2**20
"""Tokens times the square of the number of leaves, in a training step; above, it is not measured. The time of the
peer's backward pass grows with it: every leaf's output is written into a tensor of all, one by one."""
TOLERANCE = 1e-4
"""Largest difference between outputs, relative to the largest output."""
MOST_ON_BOUNDARIES = 1e-3
"""Share of tokens that may differ in inference: on a boundary, rounding decides which leaf is taken."""


@dataclass
class SoftArguments:
    """What is timed."""

    depths: list[int] = field(default_factory=lambda: [2, 5, 8, 11])
    """Of the trees, at least 1."""
    tokens: list[int] = field(default_factory=lambda: [1, 16, 128, 1024, 4096])
    """In a call."""
    width: int = 768
    """Of input and output."""
    leaf_size: int = 32
    """Neurons of a leaf."""
    threads: int = 1
    """Of PyTorch."""
    seconds: float = 1.0
    """How long each layer is timed in each case, at least three turns."""
    output_dir: str = "out/benchmark_soft"
    """Where soft.json and soft.md are written."""


def benchmark(arguments: SoftArguments) -> None:
    peer_class = _peer_class()
    for name, value in asdict(arguments).items():
        if isinstance(value, list) and (not value or min(value) < 1):
            raise UserError(f"{name} is {value}; it should be a list of whole numbers from 1 on")
        if isinstance(value, int) and value < 1:
            raise UserError(f"{name} is {value}; it should be at least 1")
    output = Path(arguments.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    rows = []
    for depth in tqdm(arguments.depths, desc="depths"):
        torch.manual_seed(0)
        ours = SoftFFF(arguments.width, arguments.leaf_size, arguments.width, depth)
        torch.nn.init.zeros_(ours.leaf_bias_out)
        peer = _with_weights_of(ours, peer_class)
        for tokens in tqdm(arguments.tokens, desc="tokens", leave=False):
            x = torch.randn(tokens, arguments.width)
            case = {"depth": depth, "tokens": tokens}
            for mode, make_call in (("inference", _inference), ("training step", _training_step)):
                if mode == "training step" and tokens * 4**depth > MOST_WORK:
                    continue
                difference = _compare(ours, peer, x, mode)
                times = take_turns({"SoftFFF": make_call(ours, x), PEER: make_call(peer, x)}, arguments.seconds)
                rows.append(case | {"mode": mode, "difference": difference} | _medians(times))
            rows.append(case | {"mode": "route"} | _medians(take_turns(_routes(ours, x), arguments.seconds)))
    result = {
        "arguments": asdict(arguments),
        "processor": processor(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, PEER: _peer_version()},
        "rows": rows,
    }
    table = _report(result)
    (output / "soft.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    (output / "soft.md").write_text(table, encoding="utf-8")
    print(table)
    print(f"written: {output / 'soft.json'}, {output / 'soft.md'}")


# the peer


def _peer_class() -> type:
    try:
        from fastfeedforward import FFF
    except ImportError:
        raise UserError(f"the layer to compare with is not installed: pip install {PEER}==0.2.1") from None
    return FFF


def _peer_version() -> str:
    try:
        return metadata.version(PEER)
    except metadata.PackageNotFoundError:
        return "from a directory"


def _with_weights_of(ours: SoftFFF, peer_class: type) -> torch.nn.Module:
    """A layer of the peer that computes what ours computes."""
    peer = peer_class(ours.input_size, ours.leaf_size, ours.output_size, ours.depth)
    with torch.no_grad():
        peer.node_weights.copy_(ours.node_weight_in.squeeze(1))
        peer.node_biases.copy_(ours.node_bias_in)
        peer.w1s.copy_(ours.leaf_weight_in.transpose(1, 2))
        peer.b1s.copy_(ours.leaf_bias_in)
        peer.w2s.copy_(ours.leaf_weight_out)
        peer.b2s.copy_(ours.leaf_bias_out)
    return peer


@torch.no_grad()
def _compare(ours: SoftFFF, peer: torch.nn.Module, x: torch.Tensor, mode: str) -> float:
    """The largest difference between outputs relative to the largest output, boundaries left aside in inference."""
    training = mode == "training step"
    expected, output = (layer.train(training)(x) for layer in (peer, ours))
    differences = (output - expected).abs().amax(1) / expected.abs().max()
    on_boundaries = 0 if training else int(MOST_ON_BOUNDARIES * len(x))
    difference = differences.sort().values[len(x) - on_boundaries - 1].item()
    if not difference <= TOLERANCE:
        raise UserError(f"{mode}: the outputs of {PEER} and SoftFFF differ by {difference:.2g}; nothing is timed")
    return difference


# what is timed


def _inference(layer: torch.nn.Module, x: torch.Tensor) -> Callable:
    layer.eval()

    def call():
        with torch.inference_mode():
            layer(x)

    return call


def _training_step(layer: torch.nn.Module, x: torch.Tensor) -> Callable:
    x, grad = x.clone().requires_grad_(), torch.randn_like(x)
    wanted = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]

    layer.train()

    def call():
        torch.autograd.grad(layer(x), wanted, grad)

    return call


def _routes(layer: SoftFFF, x: torch.Tensor) -> dict[str, Callable]:
    """The two ways to find the leaves of tokens."""
    layer.eval()

    def call(all_nodes_depth: int):
        chosen, soft.ALL_NODES_DEPTH = soft.ALL_NODES_DEPTH, all_nodes_depth
        layer.route(x)
        soft.ALL_NODES_DEPTH = chosen

    return {"all nodes": lambda: call(layer.depth), "nodes on paths": lambda: call(0)}


def _medians(times: dict[str, list[float]]) -> dict[str, float]:
    """Microseconds a call."""
    return {name: 1e6 * statistics.median(values) for name, values in times.items()}


# the report


def _report(result: dict) -> str:
    arguments, versions = result["arguments"], result["versions"]
    lines = [
        f"Microseconds a call, medians, float32, {arguments['threads']} thread{'s' * (arguments['threads'] > 1)};"
        f" {arguments['width']} -> leaves of {arguments['leaf_size']} -> {arguments['width']}, node size 1."
        f" {result['processor']}; " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        "",
    ]
    for mode, first, second in (
        ("inference", "SoftFFF", PEER),
        ("training step", "SoftFFF", PEER),
        ("route", "all nodes", "nodes on paths"),
    ):
        rows = {(row["depth"], row["tokens"]): row for row in result["rows"] if row["mode"] == mode}
        lines += [f"**{mode.capitalize()}**: {first} / {second}, and in brackets how many times faster {first} is", ""]
        lines += ["| depth | leaves | " + " | ".join(f"{n:,}" for n in arguments["tokens"]) + " |"]
        lines += ["| --- | --- |" + " --- |" * len(arguments["tokens"])]
        for depth in arguments["depths"]:
            cells = [_cell(rows.get((depth, tokens)), first, second) for tokens in arguments["tokens"]]
            lines.append(f"| {depth} | {2**depth:,} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(row: dict | None, first: str, second: str) -> str:
    if row is None:
        return "–"
    return f"{_rounded(row[first])} / {_rounded(row[second])} ({row[second] / row[first]:.3g}x)"


def _rounded(microseconds: float) -> str:
    return f"{microseconds:,.0f}" if microseconds >= 100 else f"{microseconds:.3g}"
