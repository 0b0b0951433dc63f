"""Times the layer of fast feedforward trees against ordinary feedforward layers: a table, a JSON file and a plot.

Contenders take turns, a short burst of calls each, so that whatever else a machine does hits all of them alike; the
first call of a burst, which finds another contender's weights in cache, is not counted. Ratios are of medians.

On a GPU whose peaks are known, the table has a floor beside each layer's times: what moving its operands once, or its
arithmetic, takes at the least. The calls of a burst find in the GPU's cache what fits there, so a time of few tokens
may lie below it.
"""

import json
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from tqdm import tqdm

from ultrafastbert import FFF
from ultrafastbert.ops import BACKENDS, choose_backend
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import write_atomically
from ultrafastbert.utils.hardware import PEAKS, Peak, device_name
from ultrafastbert.utils.timing import take_turns

PAPER_SIZES = ["3072x0", "1536x1", "512x2", "256x3", "128x4", "64x5", "32x6", "16x7", "8x8", "4x9", "2x10", "1x11"]
DEFAULTS = {
    "cpu": {
        "sizes": PAPER_SIZES,
        "dense": [3072, 4095],
        "backends": ["native", "gather", "dense"],
        "compiled": ["1x11"],
        "compiled_backends": ["gather"],
        "tokens": [1, 16, 128, 1024, 16384],
        "dtypes": ["float32", "bfloat16"],
        "threads": sorted({1, torch.get_num_threads()}),
        "depths": list(range(14)),
    },
    "cuda": {
        "sizes": [*PAPER_SIZES, "1x12", "1x13", "1x14", "1x15"],
        "dense": [4095, 3072],
        "backends": ["blocked", "dense", "original"],
        "compiled": ["128x4", "8x8", "1x11", "1x12", "1x13", "1x14", "1x15"],
        "compiled_backends": ["blocked", "dense", "original"],
        "tokens": [1, 16, 256, 4096, 16384, 65536, 262144],
        "dtypes": ["bfloat16"],
        "threads": [torch.get_num_threads()],
        "depths": [7, 9, 11, 13, 15],
    },
}
"""What is timed on each device unless the options say otherwise."""
MOST_BYTES = 2**31
"""What `gather` may take for the rows of one level; above, it is not measured."""
MOST_NEURONS = {"cpu": 2**24, "cuda": 2**32}
"""Neurons times tokens for which all of them are computed; above, it is not measured."""
PLOTTED = {"cpu": ("native", 128), "cuda": ("blocked", 65536)}
"""Backend and tokens of the plot."""


@dataclass
class LayerArguments:
    """What is timed. Options that are null depend on the device; `DEFAULTS` in the script has them."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where layers and tokens are. On cuda the ordinary layers are compiled by torch.compile."""
    sizes: list[str] | None = None
    """Trees, as TREESxDEPTH. [null: the paper's row, on cuda single trees up to 1x15 too]"""
    dense: list[int] | None = None
    """Ordinary layers, by their neurons; ratios are to the last. [null: 3072 and 4095, on cuda the other way round]"""
    backends: list[str] | None = None
    """Backends of the trees; `original` is the formulation of the paper's training code, all neurons masked to the
    path. [null: native, gather, dense; on cuda blocked, dense, original]"""
    compiled: list[str] | None = None
    """Sizes that are timed under torch.compile too. [null: 1x11; on cuda 128x4, 8x8, and 1x11 to 1x15]"""
    compiled_backends: list[str] | None = None
    """Backends that are timed under torch.compile. [null: gather; on cuda blocked, dense, original]"""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    """Mode of torch.compile; reduce-overhead is CUDA graphs."""
    tokens: list[int] | None = None
    """Tokens in a call. [null: 1 to 16384, on cuda 1 to 262144]"""
    one_path: bool = False
    """All tokens are the same, so that they take one path: the most uneven load there is."""
    dtypes: list[str] | None = None
    """Of weights and tokens. [null: float32 and bfloat16, on cuda bfloat16]"""
    threads: list[int] | None = None
    """Threads of PyTorch on the CPU; on cuda, which they hardly bear on, a single number. [null: one, and all]"""
    depths: list[int] | None = None
    """Depths of the single tree that the plot shows against an ordinary layer of as many neurons, in the first dtype
    on the first number of threads: `native` at 128 tokens, on cuda `blocked` at 65,536, both compiled. [null: 0 to 13,
    on cuda 7 to 15; empty: no plot]"""
    hidden_size: int = 768
    """Width of the tokens."""
    backward: bool = False
    """Time a forward and a backward pass, with gradients of tokens and weights, instead of inference."""
    seconds: float = 1.0
    """How long each contender is timed in each case, at least three bursts."""
    output_dir: str = "out/benchmark_layer"
    """Where layer.json, layer.md and layer.png are written."""

    def __post_init__(self):
        for name, value in DEFAULTS[self.device].items():
            if getattr(self, name) is None:
                setattr(self, name, value)


class Dense(nn.Module):
    """An ordinary feedforward layer, without biases as in the encoder."""

    def __init__(self, hidden_size: int, neurons: int):
        super().__init__()
        self.expand = nn.Linear(hidden_size, neurons, bias=False)
        self.contract = nn.Linear(neurons, hidden_size, bias=False)

    def forward(self, x):
        return self.contract(nn.functional.gelu(self.expand(x)))


class Original(FFF):
    """Trees as the paper's training code evaluates them: every neuron, times a mask of zeros and ones.

    Source: arXiv 2311.10770, section 2 and algorithm 1.
    """

    def forward(self, x):
        trees, nodes, _ = self.weight_in.shape
        product = nn.functional.linear(x, self.weight_in.flatten(0, 1), self.bias_in.flatten())
        pre_activation = product.unflatten(-1, (trees, nodes))
        with torch.no_grad():
            on_path = torch.zeros_like(pre_activation)
            node = torch.zeros_like(pre_activation[..., :1], dtype=torch.long)  # (tokens, trees, 1)
            for _ in range(self.depth + 1):
                on_path.scatter_(-1, node, 1.0)
                right = pre_activation.gather(-1, node) > 0
                node = (2 * node + 1 + right).clamp(max=nodes - 1)  # below the leaves there is nothing to look at
        activation = nn.functional.gelu(pre_activation) * on_path
        return activation.flatten(-2) @ self.weight_out.flatten(0, 1)


def _benchmark(arguments: LayerArguments) -> None:
    output = Path(arguments.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    rows, floors = [], []
    name = device_name(arguments.device)
    cases = [(d, th, n) for d in arguments.dtypes for th in arguments.threads for n in arguments.tokens]
    for dtype, threads, tokens in tqdm(cases, desc="cases"):
        torch.set_num_threads(threads)
        if arguments.compiled or arguments.device == "cuda":
            torch.compiler.reset()  # what was compiled for another number of tokens
        contenders = _contenders(arguments, getattr(torch, dtype), tokens)
        case = {"dtype": dtype, "threads": threads, "tokens": tokens}
        rows += _measure(arguments, contenders, case)
        floors += _floors(arguments, case, PEAKS.get(name))
    scaling = _scaling(arguments)
    result = {
        "arguments": asdict(arguments),
        "processor": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "rows": rows,
        "floors": floors,
        "scaling": scaling,
    }
    write_atomically(output / "layer.md", _table(result))
    if scaling:
        _draw(scaling, arguments, output / "layer.png")
    write_atomically(output / "layer.json", json.dumps(result, indent=1))  # last: where it is, all is done
    print(_table(result))
    print(f"written: {', '.join(str(path) for path in sorted(output.glob('layer.*')))}")


# what is timed


def _contenders(arguments: LayerArguments, dtype: torch.dtype, tokens: int) -> dict[str, Callable]:
    """A call of each contender, by name."""
    inputs = _inputs(arguments, dtype, tokens)
    calls = {}
    for neurons in arguments.dense:
        calls[_ordinary(neurons, arguments.device)] = _ordinary_call(neurons, arguments, inputs)
    for size in arguments.sizes:
        for backend in dict.fromkeys((*arguments.backends, *arguments.compiled_backends)):
            if _is_too_large(size, backend, arguments, inputs[0]):
                continue
            if backend in arguments.backends:
                calls[f"{size} {backend}"] = _call(_tree(size, backend, arguments, dtype), arguments, inputs)
            if backend in arguments.compiled_backends and size in arguments.compiled:
                layer = _compile(_tree(size, backend, arguments, dtype), arguments)
                calls[f"{size} {backend}, compiled"] = _call(layer, arguments, inputs)
    return calls


def _is_too_large(size: str, backend: str, arguments: LayerArguments, x: torch.Tensor) -> bool:
    trees, depth = map(int, size.split("x"))
    if backend == "gather":
        return trees * x.nbytes > MOST_BYTES
    neurons = trees * (2 ** (depth + 1) - 1)
    return backend in ("dense", "original") and depth > 0 and len(x) * neurons > MOST_NEURONS[arguments.device]


def _tree(size: str, backend: str, arguments: LayerArguments, dtype: torch.dtype) -> FFF:
    trees, depth = map(int, size.split("x"))
    with torch.device(arguments.device):
        if backend == "original":
            return Original(arguments.hidden_size, depth, trees).to(dtype)
        return FFF(arguments.hidden_size, depth, trees, backend=backend).to(dtype)


def _ordinary(neurons: int, device: str) -> str:
    return f"dense-{neurons}, compiled" if device == "cuda" else f"dense-{neurons}"


def _ordinary_call(neurons: int, arguments: LayerArguments, inputs: tuple) -> Callable:
    with torch.device(arguments.device):
        layer = Dense(arguments.hidden_size, neurons).to(inputs[0].dtype)
    return _call(_compile(layer, arguments) if arguments.device == "cuda" else layer, arguments, inputs)


def _compile(layer: nn.Module, arguments: LayerArguments) -> nn.Module:
    # Layers of one class share their code, for which PyTorch would give up after a few of them and compile no more.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 4096
    return torch.compile(layer, dynamic=False, mode=arguments.compile_mode)


def _inputs(arguments: LayerArguments, dtype: torch.dtype, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and a gradient of what becomes of them, both `(tokens, hidden_size)`, on the device."""
    torch.manual_seed(0)
    shape = (tokens, arguments.hidden_size)
    x = torch.randn(shape, dtype=dtype, device=arguments.device)
    if arguments.one_path:
        x = x[:1].repeat(tokens, 1)
    return x.requires_grad_(arguments.backward), torch.randn_like(x)


def _call(layer: nn.Module, arguments: LayerArguments, inputs: tuple[torch.Tensor, torch.Tensor]) -> Callable:
    x, grad = inputs
    if not arguments.backward:
        layer.requires_grad_(False)

        def call():
            with torch.inference_mode():
                layer(x)

        return call
    wanted = [x, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(x), wanted, grad)


def _measure(arguments: LayerArguments, contenders: dict[str, Callable], case: dict) -> list[dict]:
    """A row for each contender: the median and the least time of a call a token, in microseconds."""
    if arguments.device == "cuda":
        contenders = {name: call for name, call in contenders.items() if _fits(name, call, case)}
    times = take_turns(contenders, arguments.seconds, device=arguments.device)
    scale = 1e6 / case["tokens"]
    return [
        case | {"name": name, "median": scale * statistics.median(values), "least": scale * min(values)}
        for name, values in times.items()
    ]


def _fits(name: str, call: Callable, case: dict) -> bool:
    """Whether the GPU's memory suffices for a call."""
    try:
        call()
        return True
    except torch.OutOfMemoryError:
        print(f"{name} is not timed at {case['tokens']:,} tokens: it needs too much memory", file=sys.stderr)
    torch.cuda.empty_cache()
    return False


def _floors(arguments: LayerArguments, case: dict, peak: Peak | None) -> list[dict]:
    """A row for each layer: the least time a token, in microseconds, that operands and arithmetic allow there."""
    dtype = getattr(torch, case["dtype"])
    if peak is None or dtype not in peak.flops:
        return []
    rows = []
    for layer in (*(f"dense-{neurons}" for neurons in arguments.dense), *arguments.sizes):
        operations, moved = _work(layer, case["tokens"], arguments.hidden_size, arguments.backward)
        seconds = {"arithmetic": operations / peak.flops[dtype], "memory": moved * dtype.itemsize / peak.bandwidth}
        bound = max(seconds, key=seconds.get)
        rows.append(case | {"layer": layer, "bound": bound, "time": 1e6 * seconds[bound] / case["tokens"]})
    return rows


def _work(layer: str, tokens: int, width: int, backward: bool) -> tuple[int, int]:
    """Floating-point operations, and numbers moved, that a layer needs.

    A tree needs the neurons on the paths alone, which are no more than there are in a level and no more than tokens.
    A forward pass reads tokens and weights and writes outputs. A backward pass reads tokens, their gradients and the
    weights, and writes gradients of tokens and of all weights.
    """
    if layer.startswith("dense-"):
        used = touched = neurons = int(layer.removeprefix("dense-"))
    else:
        trees, depth = map(int, layer.split("x"))
        used, neurons = trees * (depth + 1), trees * (2 ** (depth + 1) - 1)
        touched = trees * sum(min(2**level, tokens) for level in range(depth + 1))
    operations, moved = 4 * used * tokens, 2 * tokens + 2 * touched
    if backward:
        operations, moved = 3 * operations, moved + 3 * tokens + 2 * touched + 2 * neurons
    return operations * width, moved * width


def _scaling(arguments: LayerArguments) -> list[dict]:
    """Times of a single tree and of an ordinary layer of as many neurons, by depth."""
    rows, dtype = [], getattr(torch, arguments.dtypes[0])
    torch.set_num_threads(arguments.threads[0])
    backend, tokens = PLOTTED[arguments.device]
    case = {"dtype": arguments.dtypes[0], "threads": arguments.threads[0], "tokens": tokens}
    for depth in tqdm(arguments.depths, desc="depths"):
        inputs = _inputs(arguments, dtype, tokens)
        tree = _tree(f"1x{depth}", backend, arguments, dtype)
        neurons = tree.weight_in.shape[1]
        calls = {
            "ordinary layer": _ordinary_call(neurons, arguments, inputs),
            "one tree": _call(_compile(tree, arguments) if arguments.device == "cuda" else tree, arguments, inputs),
        }
        rows += [row | {"neurons": neurons, "depth": depth} for row in _measure(arguments, calls, case)]
    return rows


# what is shown


def _table(result: dict) -> str:
    arguments = result["arguments"]
    what = "forward and backward pass" if arguments["backward"] else "inference"
    what += ", all tokens on one path" if arguments["one_path"] else ""
    baseline = _ordinary(arguments["dense"][-1], arguments["device"])
    lines = [
        f"Width {arguments['hidden_size']}, {what}; median microseconds a token, and in brackets how many times"
        f" faster than {baseline} in the same case. {result['processor']}, torch {result['torch']}.",
        "",
    ]
    if arguments["device"] == "cuda":
        lines += [_about_floors(result), ""]
    names = list(dict.fromkeys(row["name"] for row in result["rows"]))
    for dtype in arguments["dtypes"]:
        for threads in arguments["threads"]:
            lines += [f"**{_case(dtype, threads, arguments)}**", ""]
            lines += ["| layer | " + " | ".join(f"{tokens:,}" for tokens in arguments["tokens"]) + " |"]
            lines += ["| --- |" + " --- |" * len(arguments["tokens"])]
            case = {
                (row["name"], row["tokens"]): row["median"]
                for row in result["rows"]
                if (row["dtype"], row["threads"]) == (dtype, threads)
            }
            floors = {(row["layer"], row["tokens"]): row for row in result["floors"] if row["dtype"] == dtype}
            for name, following in zip(names, [*names[1:], ""], strict=True):
                cells = [_cell(case, name, baseline, tokens) for tokens in arguments["tokens"]]
                lines.append(f"| {name} | {' | '.join(cells)} |")
                if floors and _layer(following) != _layer(name):
                    rows = [floors[_layer(name), tokens] for tokens in arguments["tokens"]]
                    cells = [f"{row['time']:.3g} ({row['bound']})" for row in rows]
                    lines.append(f"| *{_layer(name)}, floor* | {' | '.join(cells)} |")
            lines.append("")
    return "\n".join(lines + _choices(result))


def _about_floors(result: dict) -> str:
    if not result["floors"]:
        return f"The peaks of {result['processor']} are not known here, so there is no floor beside the times."
    return (
        "A floor is the larger of two times: the arithmetic that the layer needs at the GPU's peak (arithmetic), or"
        " moving tokens, outputs and weights once a pass at its bandwidth (memory)."
    )


def _case(dtype: str, threads: int, arguments: dict) -> str:
    return dtype if arguments["device"] == "cuda" else f"{dtype}, {threads} thread{'s' * (threads > 1)}"


def _layer(name: str) -> str:
    """The layer that a contender evaluates: `1x11` of `1x11 blocked, compiled`."""
    return name.partition(" ")[0].rstrip(",")


def _cell(case: dict, name: str, baseline: str, tokens: int) -> str:
    median = case.get((name, tokens))
    if median is None:
        return "–"
    ratio = f" ({case[baseline, tokens] / median:.3g}x)" if (baseline, tokens) in case else ""
    return f"{median:.3g}{ratio}"


def _choices(result: dict) -> list[str]:
    """Lines of a table: the fastest backend of each size, by how much, and where the automatic choice is another."""
    arguments = result["arguments"]
    backends = [backend for backend in arguments["backends"] if backend in BACKENDS]
    if len(backends) < 2:
        return []
    cases = [(d, th, n) for d in arguments["dtypes"] for th in arguments["threads"] for n in arguments["tokens"]]
    medians = {(r["dtype"], r["threads"], r["tokens"], r["name"]): r["median"] for r in result["rows"]}
    lines = [
        "**The fastest backend**, how many times faster than the next, and the automatic choice (of those timed) where"
        " that is another, with how many times slower it is.",
        "",
        "| size | " + " | ".join(f"{_case(d, th, arguments)}, {n:,}" for d, th, n in cases) + " |",
        "| --- |" + " --- |" * len(cases),
    ]
    for size in arguments["sizes"]:
        cells = []
        for case in cases:
            names = {backend: f"{size} {backend}" for backend in backends}
            if arguments["device"] == "cuda":  # where models are compiled
                names = {b: f"{n}, compiled" if (*case, f"{n}, compiled") in medians else n for b, n in names.items()}
            times = {b: medians[*case, name] for b, name in names.items() if (*case, name) in medians}
            cells.append(_choice(times, size, case[0], arguments))
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return [*lines, ""]


def _choice(times: dict[str, float], size: str, dtype: str, arguments: dict) -> str:
    if not times:
        return "–"
    fastest, *others = sorted(times, key=times.get)
    cell = fastest if not others else f"{fastest} {times[others[0]] / times[fastest]:.3g}x"
    nodes, width = 2 ** (int(size.partition("x")[2]) + 1) - 1, arguments["hidden_size"]
    like = {"dtype": getattr(torch, dtype), "device": arguments["device"]}
    weight = torch.empty(1, nodes, width, requires_grad=arguments["backward"], **like)
    chosen = choose_backend(torch.empty(1, width, **like), weight)
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
        f"width {arguments.hidden_size}, {case['tokens']} tokens,"
        f" {_case(case['dtype'], case['threads'], asdict(arguments))}",
        fontsize=10,
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def benchmark(arguments: LayerArguments) -> None:
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
    for backend in (*arguments.backends, *arguments.compiled_backends):
        if backend not in (*BACKENDS, "original"):
            known = ", ".join((*BACKENDS, "original"))
            raise UserError(f"backends or compiled_backends holds {backend!r}; it should be one of {known}")
    if arguments.device == "cuda":
        if not torch.cuda.is_available():
            raise UserError("device is cuda; this PyTorch finds no GPU")
        if len(arguments.threads) != 1:
            raise UserError(f"threads is {arguments.threads}; on cuda it should be a single number")
    _benchmark(arguments)
