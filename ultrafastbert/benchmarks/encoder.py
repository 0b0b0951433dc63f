"""Times whole encoders on the CPU, ours and what else a user would pick: tables, a JSON file and a plot.

All are of one width, with as many layers, and have random weights, on which their speed does not depend. They are
loaded from files as a user loads them. Contenders take turns, a short burst of calls each, so that whatever else a
machine does hits all of them alike; the first call of a burst, which finds other weights in cache, is not counted.

What computes something else is not timed: before, the outputs of each encoder are compared with those that its float32
original in transformers has for a padded batch. Memory is that of a fresh process with a single encoder.
"""
# ruff: noqa: E402

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports, which take seconds: no traceback

import contextlib
import importlib.util
import io
import json
import logging
import multiprocessing
import platform
import re
import statistics
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from tqdm import tqdm
from transformers import BertConfig, BertModel

from ultrafastbert import UltraFastBertConfig, UltraFastBertModel, optimize_for_inference
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import write_atomically
from ultrafastbert.utils.hardware import processor
from ultrafastbert.utils.timing import take_turns

OPTIMIZED = {
    "float32": {"dtype": "float32", "int8": False},
    "bfloat16": {"dtype": "bfloat16", "int8": False},
    "int8": {"dtype": "bfloat16", "int8": True},
}
"""Settings of `optimize_for_inference`, by what the contender is called after `optimized-`."""
CONTENDERS = [
    "ultrafastbert-float32",
    "ultrafastbert-bfloat16",
    "ultrafastbert_compiled-bfloat16",
    *(f"optimized-{name}" for name in OPTIMIZED),
    "bert-float32",
    "bert-bfloat16",
    "bert_compiled-bfloat16",
    "onnxruntime-float32",
    "onnxruntime-int8",
    "openvino",
]
NEEDS = {"onnxruntime": ["onnx", "onnxruntime"], "openvino": ["onnx", "openvino"]}
OURS, PEERS = ("ultrafastbert", "optimized"), ("onnxruntime", "openvino")
MOST_ERROR = {"float32": 1e-3}
"""Largest error of what is timed; for 16 and 8 bits 0.08, less than leaving out the mask of padding would make."""
ROWS, SHORTEST, LONGEST = 16, 8, 128
"""The workload of mixed lengths: rows, and the tokens they may have."""


@dataclass
class EncoderArguments:
    """What is timed."""

    contenders: list[str] = field(default_factory=lambda: list(CONTENDERS))
    """Encoders: ours and transformers' BERT as loaded and under torch.compile (for each shape, weights frozen), ours
    through `optimize_for_inference`, BERT in ONNX Runtime (its matrices dynamically quantized, for int8) and in
    OpenVINO (in the precision of its choice). ONNX Runtime and OpenVINO are installed by the extra `bench`, and left
    out where they are not."""
    workloads: list[str] = field(default_factory=lambda: ["1x16", "1x128", "8x128", "mixed"])
    """Batches, as ROWSxTOKENS without padding; `mixed` is 16 rows of 8 to 128 tokens, padded to the longest."""
    threads: list[int] = field(default_factory=lambda: [torch.get_num_threads()])
    """Threads of each contender. [all]"""
    baseline: str = "bert-float32"
    """The contender to which the ratios of latencies are."""
    size: str = "1x11"
    """Feedforward layers of ours, as TREESxDEPTH; those of BERT have four times its width."""
    layers: int = 12
    """Transformer layers."""
    hidden_size: int = 768
    """Width."""
    heads: int = 12
    """Attention heads."""
    vocabulary: int = 30522
    """Tokens in the vocabulary."""
    memory: bool = True
    """Measure the memory of each contender in a process of its own (on Linux), on the first number of threads."""
    seconds: float = 10.0
    """How long each contender is timed with each workload, at least three bursts."""
    output_dir: str = "out/benchmark_encoder"
    """Where encoder.json, encoder.md and encoder.png are written when everything is timed."""


@dataclass
class Encoder:
    """A loaded contender."""

    call: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """Tokens and mask `(batch, seq)` int64 -> last hidden states `(batch, seq, hidden)`."""
    weights: int
    """Bytes of its tensors, or of the file that a runtime reads."""
    note: str = ""


def _benchmark(arguments: EncoderArguments) -> None:
    output = Path(arguments.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir {output} cannot be made: {error}") from error
    _quieten()
    installed, missing = _installed(arguments.contenders)
    for line in missing:
        print(line, file=sys.stderr)
    if arguments.baseline not in installed:
        raise UserError(f"baseline is {arguments.baseline!r}; it should be one of the contenders: {installed}")
    with TemporaryDirectory(prefix="ultrafastbert-") as directory:
        encoders, rows = _time_encoders(arguments, installed, Path(directory))
    result = {
        "arguments": asdict(arguments),
        "processor": processor(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", *_libraries(installed))},
        "mixed": _lengths().tolist(),
        "missing": missing,
        "encoders": encoders,
        "rows": rows,
    }
    write_atomically(output / "encoder.json", json.dumps(result, indent=1))
    write_atomically(output / "encoder.md", _tables(result))
    write_atomically(output / "encoder.png", _plot(result))
    print(_tables(result))
    print(f"written: {', '.join(str(path) for path in sorted(output.glob('encoder.*')))}")


def _time_encoders(arguments: EncoderArguments, names: list[str], directory: Path) -> tuple[list[dict], list[dict]]:
    """What each contender is, and a row for each number of threads, workload and contender."""
    references, notes = _prepare(arguments, names, directory)
    memory = {}
    for name in tqdm(names if arguments.memory else [], desc="memory"):
        memory[name] = _in_a_process(_memory, name, directory, arguments.threads[0], arguments.vocabulary)
    described, rows = {}, []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        torch.compiler.reset()  # compiled code is for a number of threads
        calls = {}
        for name in names:
            encoder = _load(name, directory, threads)
            error = _error(encoder, references[_original(name)], arguments.vocabulary)
            wrong = not error <= MOST_ERROR.get(_dtype(name), 0.08)
            if name not in described:
                note = f"{notes.get(name, '')}{encoder.note}"
                described[name] = {"name": name, "note": note, "error": error, "weights": encoder.weights}
                described[name] |= {"wrong": wrong} | memory.get(name, {})
            if not wrong:
                calls[name] = encoder.call
                continue
            print(f"{name} is not timed: its outputs are wrong by {error:.2g}", file=sys.stderr)
            if name == arguments.baseline:
                raise UserError(f"baseline {name} computes something else, wrong by {error:.2g}")
        for workload in tqdm(arguments.workloads, desc=_threads(threads)):
            rows += _measure(calls, workload, arguments, threads)
    return list(described.values()), rows


def _measure(calls: dict[str, Callable], workload: str, arguments: EncoderArguments, threads: int) -> list[dict]:
    """A row for each contender: latencies of a call in milliseconds, and the real tokens that it encodes a second."""
    inputs = _inputs(workload, arguments.vocabulary)
    with torch.inference_mode():
        times = take_turns(
            {name: lambda call=call: call(*inputs) for name, call in calls.items()}, arguments.seconds, burst=3
        )
    case = {"threads": threads, "workload": workload}
    return [
        case
        | {
            "name": name,
            "median": 1e3 * statistics.median(values),
            "p95": 1e3 * statistics.quantiles(values, n=20, method="inclusive")[-1],
            "tokens_per_second": inputs[1].sum().item() / statistics.median(values),
            "calls": len(values),
        }
        for name, values in times.items()
    ]


# what is encoded


def _inputs(workload: str, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask of a workload, `(batch, seq)` int64, the same each time."""
    if workload == "mixed":
        lengths = _lengths()
    else:
        rows, tokens = map(int, workload.split("x"))
        lengths = torch.full((rows,), tokens)
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    tokens = torch.randint(1, vocabulary, mask.shape, generator=torch.Generator().manual_seed(0))
    return tokens * mask, mask


def _lengths() -> torch.Tensor:
    """Tokens of the rows of the mixed workload: short ones are frequent, the mean is about 45."""
    more = torch.empty(ROWS).exponential_(1 / 40, generator=torch.Generator().manual_seed(0))
    return (SHORTEST + more.long()).clamp(max=LONGEST)


def _error(encoder: Encoder, expected: torch.Tensor, vocabulary: int) -> float:
    """Root of the mean squared error of the vectors of real tokens, relative to the root of their mean square."""
    tokens, mask = _inputs("mixed", vocabulary)
    with torch.inference_mode():
        difference = (encoder.call(tokens, mask).float() - expected) * mask[..., None]
    return (difference.norm() / (expected * mask[..., None]).norm()).item()


# contenders


def _original(name: str) -> str:
    return "ultrafastbert" if name.startswith(OURS) else "bert"


def _dtype(name: str) -> str:
    return name.partition("-")[2]


def _libraries(names: list[str]) -> list[str]:
    """Optional libraries that these contenders need."""
    return list(dict.fromkeys(library for name in names for library in NEEDS.get(name.partition("-")[0], [])))


def _installed(names: list[str]) -> tuple[list[str], list[str]]:
    """The contenders that can be timed, and a line for each that cannot."""
    installed, missing = [], []
    for name in names:
        absent = [library for library in _libraries([name]) if importlib.util.find_spec(library) is None]
        if absent:
            missing.append(f"{name} is left out: no {' and no '.join(absent)}; pip install -e '.[bench]' installs it")
        else:
            installed.append(name)
    return installed, missing


def _config(arguments: EncoderArguments) -> UltraFastBertConfig:
    trees, depth = map(int, arguments.size.split("x"))
    return UltraFastBertConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden_size,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        max_position_embeddings=_longest(arguments.workloads),
        fff_trees=trees,
        fff_depth=depth,
    )


def _longest(workloads: list[str]) -> int:
    return max([512, *(int(workload.split("x")[1]) for workload in workloads if workload != "mixed")])


def _prepare(
    arguments: EncoderArguments, names: list[str], directory: Path
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Writes what the contenders are loaded from; returns what the originals compute, and notes by contender."""
    torch.manual_seed(0)
    references, notes = {}, {}
    tokens, mask = _inputs("mixed", arguments.vocabulary)
    config = _config(arguments)
    originals = {
        "ultrafastbert": lambda: UltraFastBertModel(config),
        "bert": lambda: BertModel(
            BertConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                intermediate_size=4 * config.hidden_size,
                max_position_embeddings=config.max_position_embeddings,
            ),
            add_pooling_layer=False,
        ),
    }
    for name in {_original(name): None for name in names}:
        model = originals[name]().eval()
        with torch.inference_mode():
            references[name] = model(tokens, attention_mask=mask).last_hidden_state
        model.save_pretrained(directory / name)
    if any(name.startswith(PEERS) for name in names):
        _export(directory)
    fused = [name for name in names if name.startswith("onnxruntime")]
    if fused:
        notes = dict.fromkeys(fused, _fuse(arguments, directory, "onnxruntime-int8" in fused))
    return references, notes


class LastHiddenState(nn.Module):
    """What is exported: tokens and mask in, a tensor out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids, attention_mask=attention_mask).last_hidden_state


def _export(directory: Path) -> None:
    """bert.onnx, by the exporter and with the attention whose nodes ONNX Runtime knows how to fuse."""
    model = BertModel.from_pretrained(directory / "bert", attn_implementation="eager", add_pooling_layer=False)
    names = ["input_ids", "attention_mask", "last_hidden_state"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing; the outputs are compared
        torch.onnx.export(
            LastHiddenState(model.eval()),
            _inputs("2x8", model.config.vocab_size),
            directory / "bert.onnx",
            dynamo=False,
            input_names=names[:2],
            output_names=names[2:],
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in names},
        )


def _fuse(arguments: EncoderArguments, directory: Path, int8: bool) -> str:
    """onnxruntime-float32.onnx and onnxruntime-int8.onnx; says how much of the attention was fused."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    path = directory / "onnxruntime-float32.onnx"
    model = optimizer.optimize_model(
        str(directory / "bert.onnx"),
        model_type="bert",
        num_heads=arguments.heads,
        hidden_size=arguments.hidden_size,
        opt_level=0,
    )
    model.save_model_to_file(str(path))
    if int8:
        quantize_dynamic(
            path,
            directory / "onnxruntime-int8.onnx",
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
    return f"{model.get_fused_operator_statistics()['Attention']} of {arguments.layers} attention layers fused"


def _load(name: str, directory: Path, threads: int) -> Encoder:
    """A contender from what `_prepare` wrote."""
    family, dtype = name.partition("-")[0], _dtype(name)
    if family == "onnxruntime":
        return _load_onnxruntime(directory / f"{name}.onnx", threads)
    if family == "openvino":
        return _load_openvino(directory / "bert.onnx", threads)
    if family == "optimized":
        model = UltraFastBertModel.from_pretrained(directory / "ultrafastbert")
        model = optimize_for_inference(model, verbose=False, **OPTIMIZED[dtype])
        return _wrap(model, "; ".join(model.optimizations))
    if name.startswith("bert"):
        model = BertModel.from_pretrained(directory / "bert", dtype=dtype, add_pooling_layer=False)
    else:
        model = UltraFastBertModel.from_pretrained(directory / "ultrafastbert", dtype=dtype)
    if family.endswith("compiled"):
        model.compile(dynamic=False, options={"freezing": True})
        return _wrap(model, "torch.compile(dynamic=False, options={'freezing': True})")
    return _wrap(model)


def _wrap(model: nn.Module, note: str = "") -> Encoder:
    # packed weights are attributes of modules, neither parameters nor buffers
    places = [place for m in model.modules() for place in (m._parameters, m._buffers, vars(m))]
    tensors = {id(value): value for place in places for value in place.values() if isinstance(value, torch.Tensor)}
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return Encoder(lambda tokens, mask: model(tokens, attention_mask=mask).last_hidden_state, weights, note)


def _load_onnxruntime(path: Path, threads: int) -> Encoder:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin after a call would take the processor from the contender whose turn is next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def call(tokens, mask):
        (output,) = session.run(None, {"input_ids": tokens.numpy(), "attention_mask": mask.numpy()})
        return torch.from_numpy(output)

    return Encoder(call, path.stat().st_size)


def _load_openvino(path: Path, threads: int) -> Encoder:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()

    def call(tokens, mask):
        outputs = compiled({"input_ids": tokens.numpy(), "attention_mask": mask.numpy()})
        return torch.from_numpy(outputs[compiled.output(0)])

    return Encoder(call, path.stat().st_size, f"computes in {precision}; weights are those of the file")


def _quieten() -> None:
    """No progress bars and no advice of libraries between the lines."""
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger().setLevel(logging.ERROR)


# memory


def _in_a_process(function: Callable, *arguments):
    """What `function` returns in a fresh Python. It imports this file, after which Ctrl-C ends it without a word."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise UserError(f"the process that ran {arguments[0]} was killed; was there enough memory?") from None


def _memory(name: str, directory: Path, threads: int, vocabulary: int) -> dict[str, int | None]:
    """Bytes of this process in memory: before the contender is loaded, then at most, and after three calls."""
    _quieten()
    before = _status("VmRSS")
    torch.set_num_threads(threads)
    encoder = _load(name, directory, threads)
    inputs = _inputs("8x128", vocabulary)
    with torch.inference_mode():
        for _ in range(3):
            encoder.call(*inputs)
    return {"before": before, "peak": _status("VmHWM"), "held": _status("VmRSS")}


def _status(key: str) -> int | None:
    """A number of bytes that Linux tells of this process; ru_maxrss would include the process that started it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return 1024 * int(line.split()[1])
    return None


# what is shown


def _tables(result: dict) -> str:
    arguments, mixed = result["arguments"], result["mixed"]
    workloads = arguments["workloads"]
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines = [
        f"{arguments['layers']} layers, {arguments['hidden_size']} wide, {arguments['heads']} heads, a vocabulary of"
        f" {arguments['vocabulary']:,}, random weights; feedforward layers of ultrafastbert are {arguments['size']}."
        f" Workloads are rows x tokens; mixed: {len(mixed)} rows of {min(mixed)} to {max(mixed)} tokens, {sum(mixed)}"
        f" in all. {result['processor']}; {versions}.",
        "",
        *(f"{line}\n" for line in result["missing"]),
    ]
    for threads in arguments["threads"]:
        cases = {(row["name"], row["workload"]): row for row in result["rows"] if row["threads"] == threads}
        names = list(dict.fromkeys(name for name, _ in cases))
        lines += [f"**{_threads(threads)}**", ""]
        lines += [
            f"Milliseconds of a call: median, 95th percentile, and how many times faster than {arguments['baseline']}"
            " the median is.",
            "",
        ]
        lines += _grid("encoder", workloads, {n: [_latency(cases, n, w, arguments) for w in workloads] for n in names})
        lines += ["Tokens a second, without padding.", ""]
        speeds = {n: [f"{cases[n, w]['tokens_per_second']:,.0f}" for w in workloads] for n in names}
        lines += _grid("encoder", workloads, speeds)
        ratios = _ratios(cases, names, workloads)
        if ratios:
            lines += ["Ratios of medians: how many times faster than the other the first is.", ""]
            lines += _grid("", workloads, ratios)
    return "\n".join(lines + _described(result))


def _grid(corner: str, columns: list[str], rows: dict[str, list[str]]) -> list[str]:
    lines = [f"| {corner} | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    return [*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()), ""]


def _latency(cases: dict, name: str, workload: str, arguments: dict) -> str:
    row, baseline = cases[name, workload], cases[arguments["baseline"], workload]
    return f"{_digits(row['median'])}, {_digits(row['p95'])} ({baseline['median'] / row['median']:.3g}x)"


def _digits(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _ratios(cases: dict, names: list[str], workloads: list[str]) -> dict[str, list[str]]:
    """Ours against BERT of the same precision, and our fastest against the fastest of ONNX Runtime and OpenVINO."""
    rows = {}
    for name in names:
        bert = f"bert-{_dtype(name)}"
        if name.startswith(OURS) and bert in names:
            medians = [(cases[bert, w]["median"], cases[name, w]["median"]) for w in workloads]
            rows[f"{name} : {bert}"] = [f"{theirs / ours:.3g}x" for theirs, ours in medians]
    ours, peers = ([name for name in names if name.startswith(family)] for family in (OURS, PEERS))
    if ours and peers:
        cells = []
        for workload in workloads:
            us, them = (min(group, key=lambda n: cases[n, workload]["median"]) for group in (ours, peers))
            ratio = cases[them, workload]["median"] / cases[us, workload]["median"]
            cells.append(f"{ratio:.3g}x ({us} : {them})")
        rows["our fastest : the fastest of ONNX Runtime and OpenVINO"] = cells
    return rows


def _described(result: dict) -> list[str]:
    """The table of memory and accuracy."""
    arguments, encoders = result["arguments"], result["encoders"]
    before = [row["before"] for row in encoders if row.get("before")]
    lines = ["**Memory and accuracy**", ""]
    if before:
        lines += [
            "Weights, in MB (10^6 bytes), and resident memory of a process that loads them, ours and BERT from a"
            f" float32 checkpoint, and encodes 8x128 three times on {_threads(arguments['threads'][0])}: at most, and"
            f" after that. Python with PyTorch and transformers, which all of them hold, is {_megabytes(min(before))}"
            " of it.",
            "",
        ]
    lines += [
        "Error: root mean square of the difference to the float32 original in transformers, relative, over the real"
        " tokens of mixed.",
        "",
    ]
    rows = {}
    for row in encoders:
        note = "; ".join(filter(None, [row["note"], "wrong, not timed" if row["wrong"] else ""]))
        sizes = [_megabytes(row.get(key)) for key in ("weights", "peak", "held")]
        rows[row["name"]] = [*sizes, f"{row['error']:.1e}", note]
    return lines + _grid("encoder", ["weights", "peak", "held", "error", ""], rows)


def _threads(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"


def _megabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e6:,.0f}" if size >= 1e7 else f"{size / 1e6:.2g}"


def _plot(result: dict) -> bytes:
    """A PNG: bars of the medians, from which lines lead to the 95th percentiles."""
    from matplotlib.figure import Figure

    threads, workloads = result["arguments"]["threads"], result["arguments"]["workloads"]
    names = list(dict.fromkeys(row["name"] for row in result["rows"]))
    colours = dict(zip((*OURS, "bert", *PEERS), ("#1f77b4", "#0b3c68", "#8c8c8c", "#e08a2e", "#b5533c"), strict=True))
    size = (2.0 + 2.6 * len(workloads), 0.8 + (0.5 + 0.27 * len(names)) * len(threads))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(threads), len(workloads), squeeze=False, sharey=True)
    for line, number in zip(grid, threads, strict=True):
        for axes, workload in zip(line, workloads, strict=True):
            rows = [r for r in result["rows"] if (r["threads"], r["workload"]) == (number, workload)]
            medians = [row["median"] for row in rows]
            axes.barh(
                [row["name"] for row in rows],
                medians,
                xerr=[[0] * len(rows), [row["p95"] - row["median"] for row in rows]],
                color=[colours[re.split("[-_]", row["name"])[0]] for row in rows],
                ecolor="#555555",
            )
            for row in rows:
                axes.annotate(
                    _digits(row["median"]), (row["p95"], row["name"]), (4, 0), textcoords="offset points", va="center"
                )
            axes.set_xlim(0, 1.3 * max(row["p95"] for row in rows))
            axes.set_title(f"{workload}, {_threads(number)}", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].invert_yaxis()  # of all, which share it: the first on top
    figure.supxlabel("milliseconds a call: median, and a line to the 95th percentile", fontsize=10)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=120, format="png")
    return stream.getvalue()


def benchmark(arguments: EncoderArguments) -> None:
    """Finds wrong arguments before minutes are spent."""
    for name, known in (("contenders", CONTENDERS), ("workloads", None), ("threads", None)):
        values = getattr(arguments, name)
        if not values or len(set(values)) < len(values):
            raise UserError(f"{name} is {values}; it should name at least one, and each once")
        for value in values:
            if known and value not in known:
                raise UserError(f"{name} holds {value!r}; it should be one of {', '.join(known)}")
    for workload in arguments.workloads:
        if workload != "mixed" and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", workload):
            raise UserError(f"workloads holds {workload!r}; it should be ROWSxTOKENS, as in 8x128, or mixed")
    if min(arguments.threads) < 1:
        raise UserError(f"threads is {arguments.threads}; they should be at least 1")
    if arguments.vocabulary < 2:
        raise UserError(f"vocabulary is {arguments.vocabulary}; it should be at least 2, padding and a token")
    if not re.fullmatch(r"\d+x\d+", arguments.size):
        raise UserError(f"size is {arguments.size!r}; it should be TREESxDEPTH, as in 1x11")
    try:
        _config(arguments)
    except StrictDataclassError as error:
        raise UserError(str(error)) from None
    _benchmark(arguments)
