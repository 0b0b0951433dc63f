"""Times whole encoders on the CPU: ours, and those that one would use otherwise.

All have the same width and number of layers, and random weights, on which their speed does not depend. Each is
compared with its float32 original in transformers before it is timed. Memory is that of a new process with a single
encoder.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ultrafastbert import UltraFastBertConfig
from ultrafastbert.benchmarks.bert import Encoder, build_config
from ultrafastbert.benchmarks.encoder_contenders import (
    CONTENDERS,
    encode_three_times,
    inputs,
    load,
    needs,
    original,
    prepare,
)
from ultrafastbert.benchmarks.encoder_tables import draw, tables
from ultrafastbert.benchmarks.harness import LISTED_ONCE, POSITIVE_INTEGERS, Benchmark, Case, Contender, Ready, missing
from ultrafastbert.benchmarks.process_memory import process_memory
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.sizes import TreeSize
from ultrafastbert.utils.validation import Rule, check, check_fields, integer, one_of

WORKLOAD = Rule(lambda text: bool(re.fullmatch(r"[1-9]\d*x[1-9]\d*|mixed", text)), "SEQUENCESxTOKENS or mixed")


@dataclass
class EncoderArguments:
    """What is timed."""

    contenders: list[str] = field(default_factory=lambda: list(CONTENDERS))
    """Encoders: ours and transformers' BERT as loaded and under torch.compile (for each shape, weights frozen), ours
    through `optimize_for_inference` and as `export onnx` writes it, BERT in ONNX Runtime (for int8 its matrices
    dynamically quantized) and in OpenVINO (in the precision that it chooses). The extra `bench` installs ONNX Runtime
    and OpenVINO; without it they are skipped."""
    workloads: list[str] = field(default_factory=lambda: ["1x16", "1x128", "8x128", "mixed"])
    """Batches, as SEQUENCESxTOKENS without padding; `mixed` is 16 sequences of 8 to 128 tokens, padded to the
    longest."""
    threads: list[int] = field(default_factory=lambda: [torch.get_num_threads()])
    """Threads of each contender. [all]"""
    baseline: str = "bert-float32"
    """The contender to which ratios of latencies are."""
    size: str = "1x11"
    """Feedforward layers of ours, as TREESxDEPTH; those of BERT have four times its width."""
    num_hidden_layers: int = 12
    """Transformer layers."""
    hidden_size: int = 768
    """Width."""
    num_attention_heads: int = 12
    """Attention heads."""
    vocabulary: int = 30522
    """Tokens in the vocabulary."""
    memory: bool = True
    """Measure the memory of each contender in a new process (on Linux), on the first number of threads."""
    seconds: float = 10.0
    """How long each contender is timed with each workload, at least three bursts. [seconds]"""
    output_dir: str = "out/benchmark_encoder"
    """Where encoder.json, encoder.md and encoder.png are written."""

    def __post_init__(self):
        check_fields(self, LISTED_ONCE, "contenders", "workloads", "threads")
        for name in self.contenders:
            check("contenders", name, one_of(*CONTENDERS))
        check("baseline", self.baseline, one_of(*self.contenders))
        for workload in self.workloads:
            check("workloads", workload, WORKLOAD)
        check_fields(self, POSITIVE_INTEGERS, "threads")
        check("vocabulary", self.vocabulary, integer(2))
        TreeSize.parse(self.size)
        self.build_config()

    def build_config(self) -> UltraFastBertConfig:
        """The configuration of our encoder."""
        lengths = [int(workload.split("x")[1]) for workload in self.workloads if workload != "mixed"]
        return build_config(self, self.size, max([512, *lengths]))


def benchmark(arguments: EncoderArguments) -> None:
    """Times all encoders and writes encoder.json, encoder.md and encoder.png."""
    packages = ["transformers", *(package for name in arguments.contenders for package in needs(name))]
    harness = Benchmark("encoder", arguments, packages)
    names = [name for name in arguments.contenders if not missing(needs(name))]
    if arguments.baseline not in names:
        raise UserError(f"baseline {arguments.baseline} cannot be timed, {missing(needs(arguments.baseline))}")
    with TemporaryDirectory(prefix="ultrafastbert-") as temporary:
        directory = Path(temporary)
        references = prepare(arguments.build_config(), names, arguments.workloads, directory)
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            torch.compiler.reset()  # code is compiled for a number of threads
            loaded = functools.cache(functools.partial(load, directory=directory, threads=threads))
            cases: list[Case] = [{"threads": threads, "workload": workload} for workload in arguments.workloads]
            for case in harness.remaining(cases):
                given = (arguments, case, directory, loaded, references)
                contenders = [
                    Contender(name, functools.partial(_set_up, name, *given), name.partition("-")[2], needs(name))
                    for name in arguments.contenders
                ]
                harness.measure(case, contenders, arguments.baseline, burst=3)
    harness.finish(tables(arguments, harness), draw(arguments, harness))


def _set_up(
    name: str,
    arguments: EncoderArguments,
    case: Case,
    directory: Path,
    loaded: Callable[[str], Encoder],
    references: dict[tuple[str, str], torch.Tensor],
) -> Ready:
    encoder, batch = loaded(name), inputs(case["workload"], arguments.vocabulary)
    real = batch[1].bool()
    expected = references[original(name), case["workload"]][real]

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return encoder.call(*batch)

    def error(output: torch.Tensor) -> float:
        return ((output[real].float() - expected).norm() / expected.norm()).item()

    def facts(median: float) -> dict[str, Any]:
        memory = {}
        if arguments.memory and case == {"threads": arguments.threads[0], "workload": arguments.workloads[0]}:
            memory = process_memory(encode_three_times, name, directory, case["threads"], arguments.vocabulary)
        known = {"weights": encoder.weights, "note": encoder.note, "tokens_per_second": int(real.sum()) / median}
        return known | memory

    return Ready(call, error, facts)
