"""Times whole training steps of masked language models: a table, a JSON file and a plot.

A step is what pretraining makes of one micro-batch: rows to the device, masks drawn there, forward pass with logits at
the masked positions alone, loss, backward pass, clipping, AdamW; in the precision and compiled as pretraining has it.
transformers' BERT is trained in the same way, but computes logits everywhere, as it does for its users.

Models take turns, a short burst of steps each, as long as the GPU's memory holds all of them; otherwise each has its
time alone, and the table says so. The rows are random tokens, on which speed does not depend.
"""
# ruff: noqa: E402

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports, which take seconds: no traceback

import gc
import io
import json
import platform
import re
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from tqdm import tqdm
from transformers import BertConfig, BertForMaskedLM, PreTrainedConfig

from ultrafastbert import FFF, UltraFastBertForMaskedLM
from ultrafastbert.ops import BACKENDS
from ultrafastbert.pretraining.arguments import ModelArguments, TrainArguments
from ultrafastbert.pretraining.data.batches import SequenceOrder
from ultrafastbert.pretraining.data.masking import Masker, masks_per_sequence
from ultrafastbert.pretraining.flops import training_flops
from ultrafastbert.pretraining.step import TrainingStep, to_device
from ultrafastbert.runs.precision import uses_bf16
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import write_atomically
from ultrafastbert.utils.hardware import device_name, utilization
from ultrafastbert.utils.timing import take_turns

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
MODEL = re.compile(rf"bert|dense-[1-9]\d*|[1-9]\d*x\d+(-({'|'.join(BACKENDS)}))?")


@dataclass
class TrainingArguments:
    """What is timed."""

    models: list[str] = field(default_factory=lambda: ["dense-3072", "dense-4095", "1x11", "8x8", "128x4", "bert"])
    """Models, by their feedforward layers: dense-NEURONS, TREESxDEPTH, or TREESxDEPTH-BACKEND, as in 1x11-dense; bert
    is BertForMaskedLM of transformers, whose layers have four times its width."""
    baseline: str = "dense-3072"
    """The model to which the ratios are."""
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    """Where the models are trained. [cuda where there is a GPU]"""
    rows: int = 128
    """Rows in a step."""
    sequence_length: int = 512
    """Tokens in a row."""
    num_hidden_layers: int = 16
    """Transformer layers."""
    hidden_size: int = 768
    """Width."""
    num_attention_heads: int = 12
    """Attention heads."""
    vocabulary: int = 32768
    """Tokens in the vocabulary."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic, as train.precision of pretraining. auto: bf16 on a GPU that has it, fp32 elsewhere."""
    compile: bool | None = None
    """Whether models are compiled by torch.compile. [null: on a GPU, as in pretraining]"""
    seconds: float = 10.0
    """How long each model is timed, at least six steps."""
    output_dir: str = "out/benchmark_training"
    """Where training.json, training.md and training.png are written when everything is timed."""


class Bert(nn.Module):
    """BERT of transformers, called as our models are: the loss is that of the masked positions."""

    def __init__(self, arguments: TrainingArguments):
        super().__init__()
        config = BertConfig(
            vocab_size=arguments.vocabulary,
            hidden_size=arguments.hidden_size,
            num_hidden_layers=arguments.num_hidden_layers,
            num_attention_heads=arguments.num_attention_heads,
            intermediate_size=4 * arguments.hidden_size,
            max_position_embeddings=arguments.sequence_length,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.bert, self.config = BertForMaskedLM(config), config

    def forward(self, input_ids, labels, masked_positions):
        wanted = torch.full_like(labels, -100).scatter(1, masked_positions, labels.gather(1, masked_positions))
        return self.bert(input_ids=input_ids, labels=wanted)


class Training:
    """A model in training."""

    def __init__(self, name: str, arguments: TrainingArguments, rows: SequenceOrder, accelerator: Accelerator):
        # a low rate: with random tokens there is nothing to learn, and the loss should stay finite
        train = TrainArguments(max_steps=1, lr=1e-5, precision=arguments.precision, compile=arguments.compile)
        self.name, self.arguments, self.rows, self.accelerator = name, arguments, rows, accelerator
        self.model = _build_model(name, arguments).to(accelerator.device)
        self.training, self.lr = TrainingStep(self.model, train, accelerator), train.lr
        self.masker = Masker(train.mask_probability, arguments.vocabulary, SPECIAL, seed=0, device=accelerator.device)
        self.place, self.worst = 0, torch.zeros(2, device=accelerator.device)  # worst: loss and gradient norm

    def step(self) -> None:
        rows = to_device(self.rows.read(self.place, self.arguments.rows), self.accelerator.device)
        loss = self.training.accumulate(self.masker(rows, self.place))
        values = self.training.update(loss, self.lr)
        self.worst = torch.maximum(self.worst, values.where(values.isfinite(), torch.inf))
        self.place += self.arguments.rows

    def check(self) -> None:
        """Raises UserError if a step made no update, which takes less time than one that does."""
        loss, norm = self.worst.tolist()
        if not np.isfinite([loss, norm]).all():
            raise UserError(
                f"{self.name}: the loss grew to {loss}, the gradient norm to {norm}; steps without an update"
                " are not timed"
            )


def _benchmark(arguments: TrainingArguments) -> None:
    output = Path(arguments.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    transformers.utils.logging.set_verbosity_error()
    torch._dynamo.config.recompile_limit = 64  # models of one class share their code
    accelerator = Accelerator(mixed_precision="no", cpu=arguments.device == "cpu")
    together, rows = _measure(arguments, accelerator)
    result = {
        "arguments": asdict(arguments),
        "device": device_name(arguments.device),
        "python": platform.python_version(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "bf16": uses_bf16(arguments.precision, accelerator.device),
        "together": together,
        "rows": rows,
    }
    write_atomically(output / "training.md", _table(result))
    write_atomically(output / "training.png", _plot(result))
    write_atomically(output / "training.json", json.dumps(result, indent=1))  # last: where it is, all is done
    print(_table(result))
    print(f"written: {', '.join(str(path) for path in sorted(output.glob('training.*')))}")


# what is timed


def _measure(arguments: TrainingArguments, accelerator: Accelerator) -> tuple[bool, list[dict]]:
    """Whether the models took turns, and a row for each that fits the memory."""
    try:
        return True, _time(arguments.models, arguments, accelerator)
    except torch.OutOfMemoryError:
        print("the models do not fit the GPU together; each has its time alone", file=sys.stderr)
    rows = []
    for name in arguments.models:
        _free(accelerator)
        try:
            rows += _time([name], arguments, accelerator)
        except torch.OutOfMemoryError:
            print(f"{name} is not timed: it needs more memory than the GPU has", file=sys.stderr)
    if not rows:
        raise UserError("no model fits the GPU's memory; lower rows or sequence_length")
    return False, rows


def _time(names: list[str], arguments: TrainingArguments, accelerator: Accelerator) -> list[dict]:
    """A row for each model: what it is, the time of a step, what that makes, and its memory."""
    shape = (max(1024, arguments.rows), arguments.sequence_length)
    tokens = np.random.default_rng(0).integers(len(SPECIAL), arguments.vocabulary, shape, dtype=np.uint32)
    order = SequenceOrder(tokens, seed=0)
    trainings, memory = {}, {}
    for name in tqdm(names, desc="models"):
        set_seed(0)
        with _PeakMemory(arguments.device) as memory[name]:
            trainings[name] = Training(name, arguments, order, accelerator)
            for _ in range(2):  # the optimiser has its state after the first
                trainings[name].step()
    calls = {name: training.step for name, training in trainings.items()}
    times = take_turns(calls, arguments.seconds, burst=2, device=arguments.device)
    for training in trainings.values():
        training.check()
    return [
        {
            "name": name,
            "parameters": sum(p.numel() for p in trainings[name].model.parameters()),
            "median": statistics.median(values),
            "least": min(values),
            "steps": len(values),
            "tokens_per_second": arguments.rows * arguments.sequence_length / statistics.median(values),
            "memory": memory[name].bytes,
            "mfu": _mfu(trainings[name].model.config, arguments, statistics.median(values)),
        }
        for name, values in times.items()
    ]


class _PeakMemory:
    """How much memory of the GPU is allocated at most while this is entered, beyond what there was before.

    `bytes` stays None on a CPU.
    """

    def __init__(self, device: str):
        self.on_gpu, self.bytes = device == "cuda", None

    def __enter__(self):
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *exception):
        if self.on_gpu:
            self.bytes = torch.cuda.max_memory_allocated() - self.before


def _free(accelerator: Accelerator) -> None:
    accelerator.free_memory()
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def _mfu(config: PreTrainedConfig, arguments: TrainingArguments, seconds: float) -> float | None:
    masked = masks_per_sequence(arguments.sequence_length, TrainArguments(max_steps=1).mask_probability)
    flops = training_flops(config, arguments.rows, arguments.sequence_length, masked)
    dtype = torch.bfloat16 if uses_bf16(arguments.precision, torch.device(arguments.device)) else torch.float32
    return utilization(flops, seconds, arguments.device, dtype)


def _build_model(name: str, arguments: TrainingArguments) -> nn.Module:
    if name == "bert":
        return Bert(arguments)
    size, backend = (name, None) if name.startswith("dense-") else (name.partition("-")[::2])
    model = UltraFastBertForMaskedLM(_config(size, arguments))
    for module in model.modules():
        if isinstance(module, FFF):
            module.backend = backend or None
    return model


def _config(size: str, arguments: TrainingArguments):
    model = ModelArguments(
        fff=size,
        hidden_size=arguments.hidden_size,
        num_hidden_layers=arguments.num_hidden_layers,
        num_attention_heads=arguments.num_attention_heads,
    )
    return model.build_config(arguments.vocabulary, arguments.sequence_length)


# what is shown


def _table(result: dict) -> str:
    arguments, rows = result["arguments"], {row["name"]: row for row in result["rows"]}
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    turns = "they took turns" if result["together"] else "each was timed alone, because memory does not hold all"
    compiled = arguments["compile"] or (arguments["compile"] is None and arguments["device"] == "cuda")
    lines = [
        f"Training steps of {arguments['rows']} rows of {arguments['sequence_length']} tokens,"
        f" {arguments['num_hidden_layers']} layers, {arguments['hidden_size']} wide, a vocabulary of"
        f" {arguments['vocabulary']:,}, {'bf16' if result['bf16'] else 'fp32'},"
        f" {'compiled' if compiled else 'not compiled'}; medians, {turns}. In brackets how many times as fast, or as"
        f" large, as {arguments['baseline']}. {result['device']}; {versions}.",
        "",
        "Memory is the most that a model, its gradients and optimiser and a step allocate on the GPU. MFU is the share"
        " of the GPU's peak that the arithmetic makes up which a model needs, of trees the neurons on the paths alone;"
        " – where the peak is not known.",
        "",
        "| model | parameters, millions | tokens a second | ms a step (steps) | memory, GB | MFU |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in arguments["models"]:
        lines.append(f"| {name} | {' | '.join(_cells(rows.get(name), rows.get(arguments['baseline'])))} |")
    return "\n".join([*lines, ""])


def _cells(row: dict | None, baseline: dict | None) -> list[str]:
    if row is None:
        return ["–", "–", "–", "out of memory", "–"]
    return [
        f"{row['parameters'] / 1e6:.1f}",
        f"{row['tokens_per_second']:,.0f}{_ratio(row, baseline, 'tokens_per_second')}",
        f"{1e3 * row['median']:.4g} ({row['steps']})",
        "–" if row["memory"] is None else f"{row['memory'] / 1e9:.3g}{_ratio(row, baseline, 'memory')}",
        "–" if row["mfu"] is None else f"{row['mfu']:.1%}",
    ]


def _ratio(row: dict, baseline: dict | None, key: str) -> str:
    return "" if baseline is None else f" ({row[key] / baseline[key]:.3g}x)"


def _plot(result: dict) -> bytes:
    """A PNG: bars of tokens a second, and of memory where it was measured."""
    from matplotlib.figure import Figure

    rows = result["rows"]
    panels = [("tokens_per_second", 1e3, "thousand tokens a second")]
    if all(row["memory"] for row in rows):
        panels.append(("memory", 1e9, "memory, GB"))
    figure = Figure(figsize=(5 * len(panels), 1.2 + 0.4 * len(rows)), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (key, unit, label) in zip(grid, panels, strict=True):
        bars = axes.barh([row["name"] for row in rows], [row[key] / unit for row in rows])
        axes.bar_label(bars, fmt="%.3g", padding=3)
        axes.margins(x=0.15)
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].invert_yaxis()  # of all, which share it: the first on top
    figure.suptitle(f"{result['arguments']['rows']} x {result['arguments']['sequence_length']} tokens a step", size=10)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=120, format="png")
    return stream.getvalue()


def benchmark(arguments: TrainingArguments) -> None:
    """Finds wrong arguments before minutes are spent."""
    if not arguments.models or len(set(arguments.models)) < len(arguments.models):
        raise UserError(f"models is {arguments.models}; it should name at least one, and each once")
    for name in arguments.models:
        if not MODEL.fullmatch(name):
            raise UserError(
                f"models holds {name!r}; it should be dense-NEURONS, TREESxDEPTH, TREESxDEPTH-BACKEND (a backend is"
                f" one of {', '.join(BACKENDS)}) or bert"
            )
    if arguments.baseline not in arguments.models:
        raise UserError(f"baseline is {arguments.baseline!r}; it should be one of the models: {arguments.models}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda; this PyTorch finds no GPU")
    for name in ("rows", "sequence_length"):
        if getattr(arguments, name) < 1:
            raise UserError(f"{name} is {getattr(arguments, name)}; it should be at least 1")
    if arguments.vocabulary <= len(SPECIAL):
        raise UserError(
            f"vocabulary is {arguments.vocabulary}; it should be more than the {len(SPECIAL)} special ones"
        )
    try:
        _config("1x0", arguments)
    except StrictDataclassError as error:
        raise UserError(str(error)) from None
    _benchmark(arguments)
