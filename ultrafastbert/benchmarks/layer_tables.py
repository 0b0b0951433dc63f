"""What the benchmark of layers shows: times and ratios, floors, the fastest backend of each size, and a plot."""

import itertools
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure

from ultrafastbert.benchmarks.harness import Benchmark, Case, Result, count_threads, digits, results_table
from ultrafastbert.ops import BACKENDS, choose_backend
from ultrafastbert.utils.figures import new_figure
from ultrafastbert.utils.hardware import PEAKS, device_name
from ultrafastbert.utils.sizes import TreeSize, parse_size
from ultrafastbert.utils.tables import markdown_table

if TYPE_CHECKING:
    from ultrafastbert.benchmarks.layer import LayerArguments


def floors(arguments: "LayerArguments", case: Case) -> list[dict[str, Any]]:
    """The least time of a call of each layer, in seconds, that its arithmetic and moving its operands allow.

    A tree needs only the neurons on the paths, in each level at most all of the level and at most one for each token.
    A forward pass reads tokens and weights and writes outputs. A backward pass reads tokens, gradients of outputs and
    weights, and writes gradients of tokens and of all weights. Without known peaks of the device there are no floors.
    """
    dtype, peak = getattr(torch, case["dtype"]), PEAKS.get(device_name(arguments.device))
    if peak is None or dtype not in peak.flops:
        return []
    entries, tokens, width = [], case["tokens"], arguments.hidden_size
    for layer in arguments.layers:
        size = parse_size(layer)
        read = size.neurons
        if isinstance(size, TreeSize):
            read = size.trees * sum(min(2**level, tokens) for level in range(size.depth + 1))
        operations, vectors = 4 * size.used * tokens * width, 2 * tokens + 2 * read
        if arguments.backward:
            operations, vectors = 3 * operations, vectors + 3 * tokens + 2 * read + 2 * size.neurons
        memory = vectors * width * dtype.itemsize / peak.bandwidth
        seconds = {"arithmetic": operations / peak.flops[dtype], "memory": memory}
        bound = max(seconds, key=lambda kind: seconds[kind])
        entries.append(case | {"name": f"*{layer}, floor*", "bound": bound, "median": seconds[bound]})
    return entries


def tables(arguments: "LayerArguments", harness: Benchmark) -> list[str]:
    """Paragraphs and tables of layer.md."""
    baseline = f"dense-{arguments.dense[-1]}{', compiled' if arguments.device == 'cuda' else ''}"
    parts = [
        f"Width {arguments.hidden_size}, {'forward and backward pass' if arguments.backward else 'inference'}"
        f"{', all tokens on one path' if arguments.one_path else ''}; median microseconds per token, and in brackets"
        f" how many times faster than {baseline} in the same case. {harness.described()}"
    ]
    if harness.record["floors"]:
        parts.append(
            "A floor is the larger of two times: the layer's arithmetic at the GPU's peak (arithmetic), or moving"
            " tokens, outputs and weights once per pass at its bandwidth (memory)."
        )
    elif arguments.device == "cuda":
        parts.append("The peaks of this GPU are not known, so the table has no floors.")

    def place(name: str) -> tuple[int, bool]:  # a layer's floor follows its times
        return arguments.layers.index(name.strip("*").partition(" ")[0].rstrip(",")), name.startswith("*")

    for dtype, threads in itertools.product(arguments.dtypes, arguments.threads):
        columns: dict[str, dict[str, Result]] = {}
        for tokens in arguments.tokens:
            case = {"dtype": dtype, "threads": threads, "tokens": tokens}
            columns[f"{tokens:,}"] = harness.select(**case, depth=None) | {
                floor["name"]: floor for floor in harness.record["floors"] if case.items() <= floor.items()
            }
        names = sorted(dict.fromkeys(itertools.chain(*columns.values())), key=place)
        parts.append(f"**{_setting(arguments, dtype, threads)}**")
        parts.append(results_table("layer", columns, _cell, baseline, names))
    return parts + _fastest(arguments, harness)


def _setting(arguments: "LayerArguments", dtype: str, threads: int) -> str:
    return dtype if arguments.device == "cuda" else f"{dtype}, {count_threads(threads)}"


def _microseconds(result: Result) -> float:
    return 1e6 * result["median"] / result["tokens"]


def _cell(result: Result) -> str:
    return digits(_microseconds(result)) + (f" {result['bound']}" if "bound" in result else "")


def _fastest(arguments: "LayerArguments", harness: Benchmark) -> list[str]:
    """A table of the fastest backend of each size, and where the automatic choice is another."""
    backends = [backend for backend in arguments.backends if backend in BACKENDS]
    if len(backends) < 2:
        return []
    cases = list(itertools.product(arguments.dtypes, arguments.threads, arguments.tokens))

    def cell(size: str, dtype: str, threads: int, tokens: int) -> str:
        timed = harness.select(dtype=dtype, threads=threads, tokens=tokens)
        names = {backend: f"{size} {backend}" for backend in backends}
        if arguments.device == "cuda":  # where models are compiled
            names = {b: f"{n}, compiled" if f"{n}, compiled" in timed else n for b, n in names.items()}
        times = {backend: timed[name]["median"] for backend, name in names.items() if name in timed}
        if not times:
            return "–"
        fastest, *others = sorted(times, key=lambda backend: times[backend])
        text = f"{fastest} {times[others[0]] / times[fastest]:.3g}x" if others else fastest
        x = torch.empty(1, arguments.hidden_size, dtype=getattr(torch, dtype), device=arguments.device)
        nodes = TreeSize.parse(size).nodes
        chosen = choose_backend(x, x.new_empty(1, nodes, x.shape[1], requires_grad=arguments.backward))
        if chosen == fastest or chosen not in times:
            return text
        return f"{text} ({chosen} {times[chosen] / times[fastest]:.3g}x)"

    return [
        "**The fastest backend**, and how many times faster it is than the next; in brackets the automatic choice,"
        " where it is another of those timed, and how many times slower it is.",
        markdown_table(
            ["size", *(f"{_setting(arguments, dtype, threads)}, {tokens:,}" for dtype, threads, tokens in cases)],
            [[size, *(cell(size, *case) for case in cases)] for size in arguments.sizes],
        ),
    ]


def draw_scaling(arguments: "LayerArguments", harness: Benchmark) -> Figure | None:
    """The times of a single tree and of an ordinary layer by the number of neurons."""
    results = [result for result in harness.results if "depth" in result]
    if not results:
        return None
    figure, panels = new_figure(7, 4.2)
    for name in ("ordinary layer", "one tree"):
        line = [(TreeSize(1, r["depth"]).neurons, _microseconds(r)) for r in results if r["name"] == name]
        panels[0, 0].plot(*zip(*line, strict=True), marker="o", label=name)
    setting = _setting(arguments, results[0]["dtype"], results[0]["threads"])
    title = f"width {arguments.hidden_size}, {results[0]['tokens']} tokens, {setting}"
    labels = {"xlabel": "neurons in the layer", "ylabel": "microseconds per token"}
    panels[0, 0].set(title=title, xscale="log", yscale="log", **labels)
    panels[0, 0].legend()
    return figure
