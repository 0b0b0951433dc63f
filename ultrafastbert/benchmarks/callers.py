"""Times encoders that several threads call at the same time, one text each, as in a service without batching.

All callers share one model. PyTorch computes a call with as many threads as its caller has set, so callers and threads
multiply; with more than the processor has cores, they wait for each other.
"""

import functools
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ultrafastbert.benchmarks.bert import Encoder, build_config
from ultrafastbert.benchmarks.encoder_contenders import CONTENDERS, inputs, load, needs, original, prepare
from ultrafastbert.benchmarks.harness import (
    LISTED_ONCE,
    POSITIVE_INTEGERS,
    Benchmark,
    Case,
    Contender,
    Ready,
    Result,
    count_threads,
    digits,
    missing,
    results_table,
)
from ultrafastbert.utils.validation import Rule, check, check_fields, integer, one_of

ONE_TEXT = Rule(lambda names: bool(names) and all(n[:2] == "1x" and n[2:].isdecimal() for n in names), "1xTOKENS, ...")
Output = tuple[str, Tensor]
"""The workload of a call and what it returned, `(1, seq, hidden)`."""


@dataclass
class CallersArguments:
    """What is timed."""

    contenders: list[str] = field(
        default_factory=lambda: ["optimized-auto", "bert-float32", "bert-bfloat16", "onnxruntime-int8", "openvino"]
    )
    """Encoders, as `benchmark encoder` has them."""
    callers: list[int] = field(default_factory=lambda: [1, 2, 4])
    """Threads that call the encoder at the same time."""
    threads: list[int] = field(default_factory=lambda: sorted({1, torch.get_num_threads()}))
    """Threads with which each call is computed. [1, and all]"""
    workloads: list[str] = field(default_factory=lambda: ["1x16", "1x48", "1x128"])
    """Texts, as 1xTOKENS, which callers take in turns."""
    requests: int = 6
    """Calls of each caller in a round, at whose end all wait for the last one."""
    baseline: str = "bert-float32"
    """The contender to which ratios of throughput are."""
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
    seconds: float = 10.0
    """How long each contender is timed in each case, at least three bursts. [seconds]"""
    output_dir: str = "out/benchmark_callers"
    """Where callers.json and callers.md are written."""

    def __post_init__(self):
        check_fields(self, LISTED_ONCE, "contenders", "callers", "threads", "workloads")
        for name in self.contenders:
            check("contenders", name, one_of(*CONTENDERS))
        check("baseline", self.baseline, one_of(*self.contenders))
        check_fields(self, ONE_TEXT, "workloads")
        check_fields(self, POSITIVE_INTEGERS, "callers", "threads")
        check_fields(self, integer(2), "requests")
        check("vocabulary", self.vocabulary, integer(2))


class Callers:
    """Threads that call an encoder at the same time.

    Args:
        encoder: that all share.
        batches: tokens and mask by workload; caller n begins with the n-th and takes one after the other.
        callers: number of threads.
        threads: with which each call is computed.
        requests: calls of each caller in a round.

    Attributes:
        latencies: seconds of each call so far but the first ones of a round, which find the weights of another
            contender in the cache.
    """

    def __init__(
        self, encoder: Encoder, batches: dict[str, tuple[Tensor, Tensor]], callers: int, threads: int, requests: int
    ):
        self.encoder, self.batches, self.callers, self.requests = encoder, list(batches.items()), callers, requests
        self.latencies: list[float] = []
        self.barrier = threading.Barrier(callers)
        self.pool = ThreadPoolExecutor(callers, initializer=torch.set_num_threads, initargs=(threads,))

    def round(self) -> list[Output]:
        """All callers make their requests; returns the outputs of all."""
        return list(itertools.chain(*self.pool.map(self._call, range(self.callers))))

    @torch.inference_mode()
    def _call(self, caller: int) -> list[Output]:
        outputs, latencies = [], []
        self.barrier.wait()  # so that every thread of the pool is one caller
        for request in range(self.requests):
            workload, batch = self.batches[(caller + request) % len(self.batches)]
            start = time.perf_counter()
            outputs.append((workload, self.encoder.call(*batch)))
            latencies.append(time.perf_counter() - start)
        self.latencies += latencies[1:]
        return outputs


def benchmark(arguments: CallersArguments) -> None:
    """Times all encoders with all numbers of callers, and writes callers.json and callers.md."""
    packages = ["transformers", *(package for name in arguments.contenders for package in needs(name))]
    harness = Benchmark("callers", arguments, packages)
    length = max(int(workload[2:]) for workload in arguments.workloads)
    config = build_config(arguments, arguments.size, max(512, length))
    with TemporaryDirectory(prefix="ultrafastbert-") as temporary:
        directory = Path(temporary)
        names = [name for name in arguments.contenders if not missing(needs(name))]
        references = prepare(config, names, arguments.workloads, directory)
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            loaded = functools.cache(functools.partial(load, directory=directory, threads=threads))
            cases: list[Case] = [{"threads": threads, "callers": callers} for callers in arguments.callers]
            for case in harness.remaining(cases):
                given = (arguments, case, loaded, references)
                contenders = [
                    Contender(name, functools.partial(_set_up, name, *given), name.partition("-")[2], needs(name))
                    for name in arguments.contenders
                ]
                harness.measure(case, contenders, arguments.baseline)
    harness.finish(_tables(arguments, harness))


def _set_up(
    name: str,
    arguments: CallersArguments,
    case: Case,
    loaded: Callable[[str], Encoder],
    references: dict[tuple[str, str], Tensor],
) -> Ready:
    batches = {workload: inputs(workload, arguments.vocabulary) for workload in arguments.workloads}
    callers = Callers(loaded(name), batches, case["callers"], case["threads"], arguments.requests)

    def error(outputs: list[Output]) -> float:
        callers.latencies.clear()  # those of the first round
        expected = [references[original(name), workload] for workload, _ in outputs]
        pairs = zip((output.float() for _, output in outputs), expected, strict=True)
        return max(((output - truth).norm() / truth.norm()).item() for output, truth in pairs)

    def facts(median: float) -> dict[str, Any]:
        percentiles = quantiles(callers.latencies, n=100, method="inclusive")
        texts = case["callers"] * arguments.requests
        return {"texts_per_second": texts / median, "p50_call": percentiles[49], "p99_call": percentiles[98]}

    return Ready(callers.round, error, facts)


def _tables(arguments: CallersArguments, harness: Benchmark) -> list[str]:
    def cell(result: Result) -> str:
        latencies = ", ".join(digits(1e3 * result[name]) for name in ("p50_call", "p99_call"))
        return f"{digits(result['texts_per_second'])}; {latencies}"

    parts = [
        f"{arguments.num_hidden_layers} layers, width {arguments.hidden_size}, {arguments.num_attention_heads} heads,"
        f" a vocabulary of {arguments.vocabulary:,}, random weights; the feedforward layers of ultrafastbert are"
        f" {arguments.size}. Callers share one model and call it at the same time, one text each, in turns of"
        f" {', '.join(arguments.workloads)}. {harness.described()}",
        "Texts per second of all callers together; median and 99th percentile of a call in milliseconds; and how many"
        f" times as many texts as {arguments.baseline}.",
    ]
    for threads in arguments.threads:
        columns = {
            f"{callers} caller{'s' * (callers > 1)}": harness.select(threads=threads, callers=callers)
            for callers in arguments.callers
        }
        parts.append(f"**Each call with {count_threads(threads)}**")
        parts.append(results_table("encoder", columns, cell, arguments.baseline))
    return parts
