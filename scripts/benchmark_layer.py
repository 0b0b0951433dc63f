"""Times the layer of fast feedforward trees against ordinary feedforward layers: a table, a JSON file and a plot.

Contenders take turns, a short burst of calls each, so that whatever else a machine does hits all of them alike; the
first call of a burst, which finds another contender's weights in cache, is not counted. Ratios are of medians.
"""

import json
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from ultrafastbert import FFF
from ultrafastbert.cli import run_command
from ultrafastbert.errors import UserError
from ultrafastbert.ops import choose_backend
from ultrafastbert.timing import processor, take_turns

PAPER_SIZES = ["3072x0", "1536x1", "512x2", "256x3", "128x4", "64x5", "32x6", "16x7", "8x8", "4x9", "2x10", "1x11"]
MOST_BYTES = 2**31
"""What `gather` may take for the rows of one level; above, it is not measured."""
MOST_NEURONS = 2**24
"""Neurons times tokens for which all of them are computed by a backend; above, it is not measured."""


@dataclass
class LayerArguments:
    """What is timed."""

    sizes: list[str] = field(default_factory=lambda: PAPER_SIZES)
    """Trees, as TREESxDEPTH; by default the paper's row."""
    dense: list[int] = field(default_factory=lambda: [3072, 4095])
    """Ordinary layers, by their neurons; ratios are to the last."""
    backends: list[str] = field(default_factory=lambda: ["native", "gather", "dense"])
    """Backends of the trees."""
    compiled: list[str] = field(default_factory=lambda: ["1x11"])
    """Sizes for which `gather` under torch.compile is timed too."""
    tokens: list[int] = field(default_factory=lambda: [1, 16, 128, 1024, 16384])
    """Tokens in a call."""
    dtypes: list[str] = field(default_factory=lambda: ["float32", "bfloat16"])
    """Of weights and tokens."""
    threads: list[int] = field(default_factory=lambda: sorted({1, torch.get_num_threads()}))
    """Threads of PyTorch; by default one, and all."""
    depths: list[int] = field(default_factory=lambda: list(range(14)))
    """Depths of the single tree that the plot shows against an ordinary layer of as many neurons, at 128 tokens in the
    first dtype on the first number of threads. [empty: no plot]"""
    hidden_size: int = 768
    """Width of the tokens."""
    backward: bool = False
    """Time a forward and a backward pass, with gradients of tokens and weights, instead of inference."""
    seconds: float = 1.0
    """How long each contender is timed in each case, at least three bursts."""
    output_dir: str = "out/benchmark_layer"
    """Where layer.json, layer.md and layer.png are written."""


class Dense(nn.Module):
    """An ordinary feedforward layer, without biases as in the encoder."""

    def __init__(self, hidden_size: int, neurons: int):
        super().__init__()
        self.expand = nn.Linear(hidden_size, neurons, bias=False)
        self.contract = nn.Linear(neurons, hidden_size, bias=False)

    def forward(self, x):
        return self.contract(nn.functional.gelu(self.expand(x)))


def main(arguments: LayerArguments) -> None:
    output = Path(arguments.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    cases = [(d, th, n) for d in arguments.dtypes for th in arguments.threads for n in arguments.tokens]
    for dtype, threads, tokens in tqdm(cases, desc="cases"):
        torch.set_num_threads(threads)
        contenders = _contenders(arguments, getattr(torch, dtype), tokens)
        rows += _measure(arguments, contenders, {"dtype": dtype, "threads": threads, "tokens": tokens})
    scaling = _scaling(arguments)
    result = {
        "arguments": asdict(arguments),
        "processor": processor(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "rows": rows,
        "scaling": scaling,
    }
    (output / "layer.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    (output / "layer.md").write_text(_table(result), encoding="utf-8")
    if scaling:
        _draw(scaling, arguments, output / "layer.png")
    print(_table(result))
    print(f"written: {', '.join(str(path) for path in sorted(output.glob('layer.*')))}")


# what is timed


def _contenders(arguments: LayerArguments, dtype: torch.dtype, tokens: int) -> dict[str, Callable]:
    """A call of each contender, by name."""
    width = arguments.hidden_size
    calls = {f"dense-{n}": _call(Dense(width, n), arguments, dtype, tokens) for n in arguments.dense}
    for size in arguments.sizes:
        trees, depth = map(int, size.split("x"))
        neurons = trees * (2 ** (depth + 1) - 1)
        for backend in arguments.backends:
            if backend == "gather" and tokens * trees * width * dtype.itemsize > MOST_BYTES:
                continue
            if backend == "dense" and tokens * neurons > MOST_NEURONS and depth > 0:
                continue
            layer = FFF(width, depth, trees, backend=backend)
            calls[f"{size} {backend}"] = _call(layer, arguments, dtype, tokens)
        if size in arguments.compiled:
            torch.compiler.reset()
            layer = torch.compile(FFF(width, depth, trees, backend="gather"), dynamic=False)
            calls[f"{size} gather, compiled"] = _call(layer, arguments, dtype, tokens)
    return calls


def _call(layer: nn.Module, arguments: LayerArguments, dtype: torch.dtype, tokens: int) -> Callable:
    torch.manual_seed(0)
    layer = layer.to(dtype)
    x = torch.randn(tokens, arguments.hidden_size, dtype=dtype)
    if not arguments.backward:
        layer.requires_grad_(False)

        def call():
            with torch.inference_mode():
                layer(x)

        return call
    x.requires_grad_()
    grad = torch.randn_like(x)
    inputs = [x, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(x), inputs, grad)


def _measure(arguments: LayerArguments, contenders: dict[str, Callable], case: dict) -> list[dict]:
    """A row for each contender: the median and the least time of a call a token, in microseconds."""
    times = take_turns(contenders, arguments.seconds)
    scale = 1e6 / case["tokens"]
    return [
        case | {"name": name, "median": scale * statistics.median(values), "least": scale * min(values)}
        for name, values in times.items()
    ]


def _scaling(arguments: LayerArguments) -> list[dict]:
    """Times of a single tree and of an ordinary layer of as many neurons, by depth."""
    rows, dtype = [], getattr(torch, arguments.dtypes[0])
    torch.set_num_threads(arguments.threads[0])
    case = {"dtype": arguments.dtypes[0], "threads": arguments.threads[0], "tokens": 128}
    for depth in tqdm(arguments.depths, desc="depths"):
        neurons = 2 ** (depth + 1) - 1
        layers = {"ordinary layer": Dense(arguments.hidden_size, neurons)}
        layers["one tree"] = FFF(arguments.hidden_size, depth, backend="native")
        calls = {name: _call(layer, arguments, dtype, 128) for name, layer in layers.items()}
        rows += [row | {"neurons": neurons, "depth": depth} for row in _measure(arguments, calls, case)]
    return rows


# what is shown


def _table(result: dict) -> str:
    arguments = result["arguments"]
    what = "forward and backward pass" if arguments["backward"] else "inference"
    baseline = f"dense-{arguments['dense'][-1]}"
    lines = [
        f"Width {arguments['hidden_size']}, {what}; median microseconds a token, and in brackets how many times"
        f" faster than {baseline} in the same case. {result['processor']}, torch {result['torch']}.",
        "",
    ]
    names = list(dict.fromkeys(row["name"] for row in result["rows"]))
    for dtype in arguments["dtypes"]:
        for threads in arguments["threads"]:
            lines += [f"**{dtype}, {threads} thread{'s' * (threads > 1)}**", ""]
            lines += ["| layer | " + " | ".join(f"{tokens:,}" for tokens in arguments["tokens"]) + " |"]
            lines += ["| --- |" + " --- |" * len(arguments["tokens"])]
            case = {
                (row["name"], row["tokens"]): row["median"]
                for row in result["rows"]
                if (row["dtype"], row["threads"]) == (dtype, threads)
            }
            for name in names:
                cells = [_cell(case, name, baseline, tokens) for tokens in arguments["tokens"]]
                lines.append(f"| {name} | {' | '.join(cells)} |")
            lines.append("")
    return "\n".join(lines + _choices(result))


def _cell(case: dict, name: str, baseline: str, tokens: int) -> str:
    median = case.get((name, tokens))
    return "–" if median is None else f"{median:.3g} ({case[baseline, tokens] / median:.3g}x)"


def _choices(result: dict) -> list[str]:
    """Lines of a table: the fastest backend of each size, by how much, and where the automatic choice is another."""
    arguments = result["arguments"]
    if len(arguments["backends"]) < 2:
        return []
    cases = [(d, th, n) for d in arguments["dtypes"] for th in arguments["threads"] for n in arguments["tokens"]]
    medians = {(r["dtype"], r["threads"], r["tokens"], r["name"]): r["median"] for r in result["rows"]}
    lines = [
        "**The fastest backend**, how many times faster than the next, and the automatic choice (of those timed) where"
        " that is another, with how many times slower it is.",
        "",
        "| size | " + " | ".join(f"{d}, {th} thread{'s' * (th > 1)}, {n:,}" for d, th, n in cases) + " |",
        "| --- |" + " --- |" * len(cases),
    ]
    for size in arguments["sizes"]:
        cells = []
        for case in cases:
            times = {
                b: medians[*case, f"{size} {b}"] for b in arguments["backends"] if (*case, f"{size} {b}") in medians
            }
            cells.append(_choice(times, size, arguments["backward"]))
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return [*lines, ""]


def _choice(times: dict[str, float], size: str, backward: bool) -> str:
    if not times:
        return "–"
    fastest, *others = sorted(times, key=times.get)
    cell = fastest if not others else f"{fastest} {times[others[0]] / times[fastest]:.3g}x"
    nodes = 2 ** (int(size.partition("x")[2]) + 1) - 1
    chosen = choose_backend(torch.empty(1, 1), torch.empty(1, nodes, 1, requires_grad=backward))
    return (
        cell
        if chosen == fastest or chosen not in times
        else f"{cell} ({chosen} {times[chosen] / times[fastest]:.3g}x)"
    )


def _draw(rows: list[dict], arguments: LayerArguments, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot(xlabel="neurons in the layer", ylabel="microseconds a token", xscale="log", yscale="log")
    for name in ("ordinary layer", "one tree"):
        line = [row for row in rows if row["name"] == name]
        axes.plot([row["neurons"] for row in line], [row["median"] for row in line], marker="o", label=name)
    case = rows[0]
    axes.set_title(
        f"width {arguments.hidden_size}, {case['tokens']} tokens, {case['dtype']}, {case['threads']} thread"
        f"{'s' * (case['threads'] > 1)}",
        fontsize=10,
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def check(arguments: LayerArguments) -> None:
    """Finds wrong arguments before hours are spent."""
    for size in (*arguments.sizes, *arguments.compiled):
        trees, _, depth = size.partition("x")
        if not (trees.isdigit() and depth.isdigit()):
            raise UserError(f"sizes or compiled holds {size!r}; it should be TREESxDEPTH, as in 1x11")
    for dtype in arguments.dtypes:
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise UserError(f"dtypes holds {dtype!r}; it should be float32, bfloat16, float16 or float64")
    if not arguments.dense:
        raise UserError("dense is empty; ratios need an ordinary layer")
    main(arguments)


if __name__ == "__main__":
    run_command(check, LayerArguments, "Times the layer of trees against ordinary feedforward layers.")
