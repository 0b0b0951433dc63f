"""Times SoftFFF against the layer of pip's `fastfeedforward`, and the two ways to find a token's leaf.

Weights are equal; output biases of leaves are zero, because inference in fastfeedforward 0.2.1 ignores them.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ultrafastbert import SoftFFF
from ultrafastbert.benchmarks.harness import (
    POSITIVE_INTEGERS,
    TOO_LARGE,
    Benchmark,
    Case,
    Contender,
    Ready,
    count_threads,
    digits,
    layer_call,
    typical_error,
)
from ultrafastbert.layers import soft
from ultrafastbert.utils.tables import markdown_table
from ultrafastbert.utils.validation import check_fields, integer

PEER = "fastfeedforward"
MAX_WORK = 2**20
"""Tokens times the square of the number of leaves, with which the time of the peer's training steps grows. Training
steps in cases above are skipped."""
CONTENDERS = {
    "inference": ("SoftFFF", PEER),
    "training step": ("SoftFFF", PEER),
    "route": ("all nodes", "nodes on paths"),
}
"""What is timed in each mode; tables have the ratio of the second to the first."""


@dataclass
class SoftArguments:
    """What is timed."""

    depths: list[int] = field(default_factory=lambda: [2, 5, 8, 11])
    """Depths of the trees, at least 1."""
    tokens: list[int] = field(default_factory=lambda: [1, 16, 128, 1024, 4096])
    """Tokens in a call."""
    width: int = 768
    """Width of input and output."""
    leaf_size: int = 32
    """Neurons of a leaf."""
    threads: int = 1
    """Threads of PyTorch."""
    seconds: float = 1.0
    """How long each layer is timed in each case, at least three bursts. [seconds]"""
    output_dir: str = "out/benchmark_soft"
    """Where soft.json and soft.md are written."""

    def __post_init__(self):
        check_fields(self, POSITIVE_INTEGERS, "depths", "tokens")
        check_fields(self, integer(1), "width", "leaf_size", "threads")


def benchmark(arguments: SoftArguments) -> None:
    """Times both layers and writes soft.json and soft.md."""
    harness = Benchmark("soft", arguments, [PEER])
    torch.set_num_threads(arguments.threads)
    cases: list[Case] = [
        {"depth": depth, "tokens": tokens, "mode": mode}
        for depth, tokens, mode in itertools.product(arguments.depths, arguments.tokens, CONTENDERS)
    ]
    for case in harness.remaining(cases):
        harness.measure(case, _contenders(arguments, case), required=PEER)
    harness.finish(_tables(arguments, harness))


def _contenders(arguments: SoftArguments, case: Case) -> list[Contender]:
    torch.manual_seed(0)
    depth, mode, names = case["depth"], case["mode"], CONTENDERS[case["mode"]]
    ours = SoftFFF(arguments.width, arguments.leaf_size, arguments.width, depth)
    torch.nn.init.zeros_(ours.leaf_bias_out)
    x = torch.randn(case["tokens"], arguments.width)
    grad = torch.randn_like(x)
    # On a boundary, rounding decides which leaf a token takes.
    ignored = 0.0 if mode == "training step" else 1e-3

    def build(name: str) -> Callable[[], torch.Tensor]:
        if mode == "route":
            return _route(ours, x, depth if name == names[0] else 0)
        layer = (_peer_with_weights_of(ours) if name == PEER else ours).train(mode == "training step")
        if mode == "inference":
            return layer_call(layer, x)
        weights = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        return layer_call(layer, x.clone().requires_grad_(), grad, weights)

    def set_up(name: str) -> Ready:
        expected = build(names[0])()
        return Ready(build(name), lambda output: typical_error(output, expected, ignored))

    skip = TOO_LARGE if mode == "training step" and case["tokens"] * 4**depth > MAX_WORK else ""
    needs = {PEER: [PEER]}
    return [Contender(n, functools.partial(set_up, n), needs=needs.get(n, []), skip=skip) for n in names]


def _peer_with_weights_of(ours: SoftFFF) -> torch.nn.Module:
    """A layer of the peer that computes what ours computes."""
    from fastfeedforward import FFF  # pyright: ignore[reportMissingImports]

    peer = FFF(ours.input_size, ours.leaf_size, ours.output_size, ours.depth)
    with torch.no_grad():
        peer.node_weights.copy_(ours.node_weight_in.squeeze(1))
        peer.node_biases.copy_(ours.node_bias_in)
        peer.w1s.copy_(ours.leaf_weight_in.transpose(1, 2))
        peer.b1s.copy_(ours.leaf_bias_in)
        peer.w2s.copy_(ours.leaf_weight_out)
        peer.b2s.copy_(ours.leaf_bias_out)
    return peer


def _route(layer: SoftFFF, x: torch.Tensor, all_nodes_depth: int) -> Callable[[], torch.Tensor]:
    """A call that finds the tokens' paths, with all nodes in trees up to `all_nodes_depth`."""

    def call() -> torch.Tensor:
        chosen, soft.ALL_NODES_DEPTH = soft.ALL_NODES_DEPTH, all_nodes_depth
        path = layer.route(x)[:, 0].float()
        soft.ALL_NODES_DEPTH = chosen
        return path

    return call


def _tables(arguments: SoftArguments, harness: Benchmark) -> list[str]:
    parts = [
        f"Microseconds per call, medians, float32, {count_threads(arguments.threads)}; {arguments.width} -> leaves of"
        f" {arguments.leaf_size} -> {arguments.width}, node size 1. {harness.described()}"
    ]
    for mode, (first, second) in CONTENDERS.items():
        rows: list[list[str]] = []
        for depth in arguments.depths:
            rows.append([str(depth), f"{2**depth:,}"])
            for tokens in arguments.tokens:
                times = [1e6 * r["median"] for r in harness.select(depth=depth, tokens=tokens, mode=mode).values()]
                ratio = f" ({times[1] / times[0]:.3g}x)" if len(times) == 2 else ""
                rows[-1].append(" / ".join(map(digits, times)) + ratio or "–")
        parts.append(f"**{mode.capitalize()}**: {first} / {second}, and in brackets how many times faster {first} is")
        parts.append(markdown_table(["depth", "leaves", *(f"{n:,}" for n in arguments.tokens)], rows))
    return parts
