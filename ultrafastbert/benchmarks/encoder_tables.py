"""What the benchmark of encoders shows: latencies, throughput, ratios, memory and errors, and a plot."""

import itertools
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from ultrafastbert.benchmarks.encoder_contenders import OURS, PEERS, mixed_lengths
from ultrafastbert.benchmarks.harness import Benchmark, Result, count_threads, digits, draw_bars, times_table
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
        header = ["tokens per second", *columns]
        names = list(dict.fromkeys(itertools.chain(*columns.values())))
        parts += [
            f"**{count_threads(threads)}**",
            times_table("encoder", columns, lambda result: 1e3 * result["median"], arguments.baseline, _latency),
            markdown_table(header, [[name, *(_throughput(c.get(name)) for c in columns.values())] for name in names]),
        ]
        if ratios := _ratios(names, columns):
            parts.append("Ratios of medians: how many times faster the first is than the second.")
            parts.append(markdown_table(["", *columns], ratios))
    return parts + _memory_and_errors(arguments, harness)


def _latency(result: Result) -> str:
    return f"{digits(1e3 * result['median'])}, {digits(1e3 * result['p95'])}"


def _throughput(result: Result | None) -> str:
    return f"{result['tokens_per_second']:,.0f}" if result else "–"


def _ratios(names: list[str], columns: dict[str, dict[str, Result]]) -> list[list[str]]:
    """Ours against BERT of the same precision, and our fastest against the fastest of ONNX Runtime and OpenVINO."""

    def ratio(timed: dict[str, Result], ours: str, theirs: str) -> str:
        return f"{timed[theirs]['median'] / timed[ours]['median']:.3g}x" if {ours, theirs} <= timed.keys() else "–"

    def of_fastest(timed: dict[str, Result]) -> str:
        pair = [[name for name in timed if name.startswith(families)] for families in (OURS, PEERS)]
        if not all(pair):
            return "–"
        ours, theirs = (min(group, key=lambda name: timed[name]["median"]) for group in pair)
        return f"{ratio(timed, ours, theirs)} ({ours} : {theirs})"

    rows = []
    for name in names:
        bert = f"bert-{name.partition('-')[2]}"
        if name.startswith(OURS) and bert in names:
            rows.append([f"{name} : {bert}", *(ratio(timed, name, bert) for timed in columns.values())])
    if any(name.startswith(OURS) for name in names) and any(name.startswith(PEERS) for name in names):
        first = "our fastest : the fastest of ONNX Runtime and OpenVINO"
        rows.append([first, *map(of_fastest, columns.values())])
    return rows


def _memory_and_errors(arguments: "EncoderArguments", harness: Benchmark) -> list[str]:
    first = harness.select(threads=arguments.threads[0], workload=arguments.workloads[0])
    before = [result["before"] for result in first.values() if result.get("before")]
    parts = ["**Memory and error**"]
    if before:
        parts.append(
            "Weights, in MB (10^6 bytes), and resident memory of a process that loads them, ours and BERT from a"
            f" float32 checkpoint, and encodes 8x128 three times on {count_threads(arguments.threads[0])}: its peak,"
            f" and what it holds at the end. It includes {_megabytes(min(before))} of Python with PyTorch and"
            " transformers."
        )
    parts.append(
        "Error: root mean square of the difference from the float32 original in transformers, relative, over real"
        " tokens; the largest of all workloads."
    )
    rows = []
    for name, result in first.items():
        error = max(other["error"] for other in harness.results if other["name"] == name)
        sizes = (_megabytes(result.get(key)) for key in ("weights", "peak", "held"))
        rows.append([name, *sizes, f"{error:.1e}", result["note"]])
    return [*parts, markdown_table(["encoder", "weights", "peak", "held", "error", ""], rows)]


def _megabytes(size: int | None) -> str:
    return "–" if size is None else digits(size / 1e6)


def draw(arguments: "EncoderArguments", harness: Benchmark) -> Figure:
    """Bars of the medians."""
    cases = [[{"threads": t, "workload": w} for w in arguments.workloads] for t in arguments.threads]
    panels = [
        [{name: 1e3 * result["median"] for name, result in harness.select(**case).items()} for case in row]
        for row in cases
    ]
    titles = [[f"{case['workload']}, {count_threads(case['threads'])}" for case in row] for row in cases]
    return draw_bars(panels, titles, "milliseconds per call, medians")
