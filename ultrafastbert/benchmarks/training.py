"""Times whole training steps of masked language models.

A step is what pretraining does with one micro-batch: it copies sequences to the device, draws masks there, and runs
the forward pass with logits at the masked positions only, the loss, the backward pass, clipping and AdamW, in the
precision and compiled as in pretraining. transformers' BERT is trained in the same way, but computes all logits, as
it does for its users.

Models take turns if the GPU's memory holds all of them. Otherwise each is timed alone, and the table says so.
"""

import gc
import re
import sys
from dataclasses import dataclass, field
from typing import Literal

import torch
import transformers
from accelerate import Accelerator
from matplotlib.figure import Figure

from ultrafastbert.benchmarks.bert import build_config
from ultrafastbert.benchmarks.harness import LISTED_ONCE, Benchmark, Case, Result, digits, draw_bars
from ultrafastbert.benchmarks.training_contenders import SPECIAL, contender
from ultrafastbert.ops import BACKENDS
from ultrafastbert.runs.precision import uses_bf16
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.tables import markdown_table
from ultrafastbert.utils.validation import Rule, check, check_fields, integer, one_of

TOGETHER: Case = {"together": True}
MODEL = Rule(
    lambda name: bool(re.fullmatch(rf"bert|dense-[1-9]\d*|[1-9]\d*x\d+(-({'|'.join(BACKENDS)}))?", name)),
    f"dense-NEURONS, TREESxDEPTH, TREESxDEPTH-BACKEND (a backend is one of {', '.join(BACKENDS)}) or bert",
)


@dataclass
class TrainingArguments:
    """What is timed."""

    models: list[str] = field(default_factory=lambda: ["dense-3072", "dense-4095", "1x11", "8x8", "128x4", "bert"])
    """Models, by their feedforward layers: dense-NEURONS, TREESxDEPTH, or TREESxDEPTH-BACKEND, as in 1x11-dense; bert
    is BertForMaskedLM of transformers, whose layers have four times its width."""
    baseline: str = "dense-3072"
    """The model to which ratios are."""
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    """Where the models are trained. [cuda where there is a GPU]"""
    sequences: int = 128
    """Sequences in a step."""
    sequence_length: int = 512
    """Tokens in a sequence."""
    num_hidden_layers: int = 16
    """Transformer layers."""
    hidden_size: int = 768
    """Width."""
    num_attention_heads: int = 12
    """Attention heads."""
    vocabulary: int = 32768
    """Tokens in the vocabulary."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic, as train.precision of pretraining. auto: bf16 where it is faster."""
    compile: bool | None = None
    """Whether models are compiled by torch.compile. [null: on a GPU, as in pretraining]"""
    seconds: float = 10.0
    """How long each model is timed, at least six steps. [seconds]"""
    output_dir: str = "out/benchmark_training"
    """Where training.json, training.md and training.png are written."""

    def __post_init__(self):
        check("models", self.models, LISTED_ONCE)
        for name in self.models:
            check("models", name, MODEL)
        check("baseline", self.baseline, one_of(*self.models))
        check_fields(self, integer(1), "sequences", "sequence_length")
        check("vocabulary", self.vocabulary, integer(len(SPECIAL) + 1))
        build_config(self, "1x0", self.sequence_length)


def benchmark(arguments: TrainingArguments) -> None:
    """Times all models and writes training.json, training.md and training.png."""
    harness = Benchmark("training", arguments, ["transformers"], arguments.device)
    transformers.utils.logging.set_verbosity_error()
    torch._dynamo.config.recompile_limit = 64  # models of one class share their code
    accelerator = Accelerator(mixed_precision="no", cpu=arguments.device == "cpu")
    contenders = {name: contender(name, arguments, accelerator) for name in arguments.models}
    if not harness.record["cases"]:
        try:
            harness.measure(TOGETHER, list(contenders.values()), burst=2, must_fit=True)
        except torch.OutOfMemoryError:
            print("the models do not fit into memory together; each is timed alone", file=sys.stderr)
    if TOGETHER not in harness.record["cases"]:
        for case in harness.remaining([{"together": False, "model": name} for name in contenders]):
            accelerator.free_memory()
            torch.compiler.reset()
            gc.collect()
            torch.cuda.empty_cache()
            harness.measure(case, [contenders[case["model"]]], burst=2)
    if not harness.results:
        raise UserError("no model could be timed; if memory is too small, lower sequences or sequence_length")
    harness.finish(_tables(arguments, harness), _draw(harness))


def _tables(arguments: TrainingArguments, harness: Benchmark) -> list[str]:
    turns = "they took turns" if harness.results[0]["together"] else "each alone, because memory does not hold all"
    compiled = arguments.compile or (arguments.compile is None and arguments.device == "cuda")
    bf16 = uses_bf16(arguments.precision, torch.device(arguments.device), arguments.hidden_size)
    results = harness.select()
    baseline = results.get(arguments.baseline)
    header = ["model", "parameters, millions", "tokens per second", "ms per step (steps)", "memory, GB", "MFU"]
    return [
        f"Training steps of {arguments.sequences} sequences of {arguments.sequence_length} tokens,"
        f" {arguments.num_hidden_layers} layers, width {arguments.hidden_size}, a vocabulary of"
        f" {arguments.vocabulary:,}, {'bf16' if bf16 else 'fp32'}, {'compiled' if compiled else 'not compiled'};"
        f" medians, {turns}. In brackets how many times as fast, or as large, as {arguments.baseline}."
        f" {harness.described()}",
        "Memory is the most that a model, its gradients, its optimizer and a step allocate on the GPU. MFU is the"
        " arithmetic that a model needs, in trees only that of the neurons on the paths, as a fraction of what the GPU"
        " could compute in the time; – where its peak is not known.",
        markdown_table(header, [[name, *_cells(results.get(name), baseline)] for name in arguments.models]),
    ]


def _cells(result: Result | None, baseline: Result | None) -> list[str]:
    if result is None:
        return ["–"] * 5

    def ratio(key: str) -> str:
        return f" ({result[key] / baseline[key]:.3g}x)" if baseline else ""

    return [
        f"{result['parameters'] / 1e6:.1f}",
        f"{result['tokens_per_second']:,.0f}{ratio('tokens_per_second')}",
        f"{digits(1e3 * result['median'])} ({result['calls']})",
        "–" if result["memory"] is None else f"{result['memory'] / 1e9:.3g}{ratio('memory')}",
        "–" if result["mfu"] is None else f"{result['mfu']:.1%}",
    ]


def _draw(harness: Benchmark) -> Figure:
    """Bars of tokens per second, and of memory where it was measured."""
    results = harness.select().items()
    panels = {"thousand tokens per second": {name: result["tokens_per_second"] / 1e3 for name, result in results}}
    if memory := {name: result["memory"] / 1e9 for name, result in results if result["memory"]}:
        panels["memory, GB"] = memory
    return draw_bars(panels, len(panels), "training steps")
