"""What the benchmark of encoders shows: latencies, throughput, ratios, memory and errors, and a plot."""

import itertools
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from ultrafastbert.benchmarks.encoder_contenders import OURS, PEERS, mixed_lengths
from ultrafastbert.benchmarks.harness import Benchmark, Result, count_threads, digits, draw_bars, results_table
from ultrafastbert.utils.tables import markdown_table

if TYPE_CHECKING:
    from ultrafastbert.benchmarks.encoder import EncoderArguments


def tables(arguments: "EncoderArguments", harness: Benchmark) -> list[str]:
    """Paragraphs and tables of encoder.md."""
    mixed = mixed_lengths().tolist()
    parts = [
        f"{arguments.num_hidden_layers} layers, width {arguments.hidden_size}, {arguments.num_attention_heads} heads,"
        f" a vocabulary of {arguments.vocabulary:,}, random weights; the feedforward layers of ultrafastbert are"
        f" {arguments.size}. Workloads are sequences x tokens; mixed: {len(mixed)} sequences of {min(mixed)} to"
        f" {max(mixed)} tokens, {sum(mixed)} in total. {harness.described()}",
        "Milliseconds per call: median, 95th percentile, and how many times faster the median is than that of"
        f" {arguments.baseline}. Tokens per second do not count padding.",
    ]
    for threads in arguments.threads:
        columns = {w: harness.select(threads=threads, workload=w) for w in arguments.workloads}
        parts += [
            f"**{count_threads(threads)}**",
            results_table("encoder", columns, _latency, arguments.baseline),
            results_table("tokens per second", columns, lambda result: f"{result['tokens_per_second']:,.0f}"),
        ]
        if ratios := _ratios(columns):
            parts.append("Ratios of medians: how many times faster the first is than the second.")
            parts.append(markdown_table(["", *columns], ratios))
    return parts + _memory_and_errors(arguments, harness)


def _latency(result: Result) -> str:
    return f"{digits(1e3 * result['median'])}, {digits(1e3 * result['p95'])}"


def _ratios(columns: dict[str, dict[str, Result]]) -> list[list[str]]:
    """Ours against BERT of the same precision, and our fastest against the fastest of ONNX Runtime and OpenVINO."""

    def ratio(timed: dict[str, Result], ours: str, theirs: str) -> str:
        return f"{timed[theirs]['median'] / timed[ours]['median']:.3g}x" if {ours, theirs} <= timed.keys() else "–"

    def fastest(timed: dict[str, Result], families: tuple[str, ...]) -> str:
        names = [name for name in timed if name.startswith(families)]
        return min(names, key=lambda name: timed[name]["median"], default="")

    names = list(dict.fromkeys(itertools.chain(*columns.values())))
    pairs = [(name, f"bert-{name.partition('-')[2]}") for name in names if name.startswith(OURS)]
    rows = [
        [f"{ours} : {bert}", *(ratio(timed, ours, bert) for timed in columns.values())]
        for ours, bert in pairs
        if bert in names
    ]
    if pairs and any(name.startswith(PEERS) for name in names):
        rows.append(["our fastest : the fastest of ONNX Runtime and OpenVINO"])
        for timed in columns.values():
            ours, theirs = fastest(timed, OURS), fastest(timed, PEERS)
            rows[-1].append(f"{ratio(timed, ours, theirs)} ({ours} : {theirs})" if ours and theirs else "–")
    return rows


def _memory_and_errors(arguments: "EncoderArguments", harness: Benchmark) -> list[str]:
    first = harness.select(threads=arguments.threads[0], workload=arguments.workloads[0])
    parts = ["**Memory and error**"]
    if before := [result["before"] for result in first.values() if result.get("before")]:
        parts.append(
            "Weights, in MB (10^6 bytes), and resident memory of a process that loads them, ours and BERT from a"
            f" float32 checkpoint, and encodes 8x128 three times on {count_threads(arguments.threads[0])}: its peak,"
            f" and what it holds at the end. It includes {digits(min(before) / 1e6)} of Python with PyTorch and"
            " transformers."
        )
    parts.append(
        "Error: root mean square of the difference from the float32 original in transformers, relative, over real"
        " tokens; the largest of all workloads."
    )
    rows = []
    for name, result in first.items():
        error = max(other["error"] for other in harness.results if other["name"] == name)
        sizes = [digits(result[key] / 1e6) if result.get(key) else "–" for key in ("weights", "peak", "held")]
        rows.append([name, *sizes, f"{error:.1e}", result["note"]])
    return [*parts, markdown_table(["encoder", "weights", "peak", "held", "error", ""], rows)]


def draw(arguments: "EncoderArguments", harness: Benchmark) -> Figure:
    """Bars of the medians."""
    panels = {}
    for threads, workload in itertools.product(arguments.threads, arguments.workloads):
        timed = harness.select(threads=threads, workload=workload)
        panels[f"{workload}, {count_threads(threads)}"] = {name: 1e3 * r["median"] for name, r in timed.items()}
    return draw_bars(panels, len(arguments.workloads), "milliseconds per call, medians")
