"""Times the layer of fast feedforward trees against ordinary feedforward layers.

On a GPU whose peaks are known, the table shows a floor below each layer's times: the least time that moving its
operands once, or its arithmetic, takes. Operands that fit into the GPU's cache stay there during a burst of calls, so
a time of few tokens may be below the floor.
"""

import itertools
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ultrafastbert.benchmarks.harness import POSITIVE_INTEGERS, Benchmark, Case
from ultrafastbert.benchmarks.layer_contenders import contenders
from ultrafastbert.benchmarks.layer_tables import draw_scaling, floors, tables
from ultrafastbert.ops import BACKENDS
from ultrafastbert.utils.sizes import TreeSize
from ultrafastbert.utils.validation import NOT_EMPTY, check, check_fields, integer, one_of

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
        "backends": ["triton", "blocked", "dense", "original"],
        "compiled": ["128x4", "8x8", "1x11", "1x12", "1x13", "1x14", "1x15"],
        "compiled_backends": ["triton", "blocked", "dense", "original"],
        "tokens": [1, 16, 256, 4096, 16384, 65536, 262144],
        "dtypes": ["bfloat16"],
        "threads": [torch.get_num_threads()],
        "depths": [7, 9, 11, 13, 15],
    },
}
"""What is timed on each device unless options say otherwise."""
BY_DEVICE: Any = None
"""The default of an option that `DEFAULTS` replaces."""


@dataclass
class LayerArguments:
    """What is timed. The default of an option that is null depends on the device."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where layers and tokens are. On cuda the ordinary layers are compiled by torch.compile."""
    sizes: list[str] = BY_DEVICE
    """Trees, as TREESxDEPTH. [null: the paper's sizes, on cuda single trees up to 1x15 too]"""
    dense: list[int] = BY_DEVICE
    """Neurons of ordinary layers; ratios are to the last. [null: 3072 and 4095, on cuda in reverse order]"""
    backends: list[str] = BY_DEVICE
    """Backends of the trees; `original` is the formulation of the paper's training code, which computes all neurons
    and masks those off the path. [null: native, gather, dense; on cuda triton, blocked, dense,
    original]"""
    compiled: list[str] = BY_DEVICE
    """Sizes that are timed under torch.compile too. [null: 1x11; on cuda 128x4, 8x8, and 1x11 to 1x15]"""
    compiled_backends: list[str] = BY_DEVICE
    """Backends that are timed under torch.compile. [null: gather; on cuda triton, blocked, dense, original]"""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    """Mode of torch.compile; reduce-overhead uses CUDA graphs."""
    tokens: list[int] = BY_DEVICE
    """Tokens in a call. [null: 1 to 16384, on cuda 1 to 262144]"""
    one_path: bool = False
    """Use equal tokens, which take the same path: the most uneven load possible."""
    dtypes: list[str] = BY_DEVICE
    """Dtypes of weights and tokens. [null: float32 and bfloat16, on cuda bfloat16]"""
    threads: list[int] = BY_DEVICE
    """Threads of PyTorch on the CPU; on cuda a single number. [null: one, and all]"""
    depths: list[int] = BY_DEVICE
    """Depths of the single tree that the plot compares with an ordinary layer of as many neurons, in the first dtype
    on the first number of threads: `native` at 128 tokens, on cuda `blocked` at 65,536, both compiled. [null: 0 to 13,
    on cuda 7 to 15; empty: no plot]"""
    hidden_size: int = 768
    """Width of the tokens."""
    backward: bool = False
    """Time a forward and a backward pass, with gradients of tokens and weights, instead of inference."""
    seconds: float = 1.0
    """How long each contender is timed in each case, at least three bursts. [seconds]"""
    output_dir: str = "out/benchmark_layer"
    """Where layer.json, layer.md and layer.png are written."""

    def __post_init__(self):
        for name, value in DEFAULTS[self.device].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        for name in ("sizes", "compiled"):
            for size in getattr(self, name):
                if TreeSize.parse(size, name).leaf_size is not None:
                    raise ValueError(f"{name} has {size!r}; of trees with leaves only whole encoders are timed")
        for name in ("backends", "compiled_backends"):
            for backend in getattr(self, name):
                check(name, backend, one_of(*BACKENDS, "original"))
        for dtype in self.dtypes:
            check("dtypes", dtype, one_of("float32", "bfloat16", "float16", "float64"))
        check_fields(self, POSITIVE_INTEGERS, "dense", "tokens", "threads")
        for depth in self.depths:
            check("depths", depth, integer(0))
        check_fields(self, NOT_EMPTY, "dtypes")
        check_fields(self, integer(1), "hidden_size")
        if self.device == "cuda" and len(self.threads) != 1:
            raise ValueError(f"threads is {self.threads}; on cuda it should be a single number")

    @property
    def layers(self) -> list[str]:
        """Ordinary layers and trees, as `parse_size` reads them."""
        return [*(f"dense-{neurons}" for neurons in self.dense), *self.sizes]


def benchmark(arguments: LayerArguments) -> None:
    """Times all layers and writes layer.json, layer.md and, with `depths`, layer.png."""
    harness = Benchmark("layer", arguments, device=arguments.device)
    cases: list[Case] = [
        {"dtype": dtype, "threads": threads, "tokens": tokens}
        for dtype, threads, tokens in itertools.product(arguments.dtypes, arguments.threads, arguments.tokens)
    ]
    plotted = cases[0] | {"tokens": 65536 if arguments.device == "cuda" else 128}
    for case in harness.remaining([*cases, *(plotted | {"depth": depth} for depth in arguments.depths)]):
        torch.set_num_threads(case["threads"])
        torch.compiler.reset()  # code compiled for another case
        harness.measure(case, contenders(arguments, case))
    harness.record["floors"] = [floor for case in cases for floor in floors(arguments, case)]
    harness.finish(tables(arguments, harness), draw_scaling(arguments, harness))
