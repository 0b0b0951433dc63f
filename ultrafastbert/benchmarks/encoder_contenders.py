"""The encoders that the benchmark of encoders times, loaded from files as a user loads them."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import BertModel

from ultrafastbert import UltraFastBertConfig, UltraFastBertModel, optimize_for_inference
from ultrafastbert.benchmarks import bert
from ultrafastbert.export.onnx import write_graph

OPTIMIZED: dict[str, tuple[str, bool | str]] = {
    "float32": ("float32", False),
    "bfloat16": ("bfloat16", False),
    "int8": ("bfloat16", True),
    "auto": ("auto", "auto"),
}
"""`dtype` and `int8` of `optimize_for_inference`, by what follows `optimized-`."""
CONTENDERS = [
    "ultrafastbert-float32",
    "ultrafastbert-bfloat16",
    "ultrafastbert_compiled-bfloat16",
    *(f"optimized-{name}" for name in OPTIMIZED),
    "ultrafastbert_onnx-float32",
    "ultrafastbert_onnx-int8",
    "bert-float32",
    "bert-bfloat16",
    "bert_compiled-bfloat16",
    "onnxruntime-float32",
    "onnxruntime-int8",
    "openvino",
]
OURS, PEERS = ("ultrafastbert", "optimized"), ("onnxruntime", "openvino")


def needs(name: str) -> list[str]:
    """The optional packages that a contender needs."""
    family = name.partition("-")[0]
    if family == "ultrafastbert_onnx":
        return ["onnx", "onnxscript", "onnxruntime"]
    return ["onnx", family] if family in PEERS else []


def original(name: str) -> str:
    """The model that a contender computes, `ultrafastbert` or `bert`."""
    return "ultrafastbert" if name.startswith(OURS) else "bert"


def inputs(workload: str, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask of a workload, `(batch, seq)` int64, the same each time."""
    if workload == "mixed":
        lengths = mixed_lengths()
    else:
        sequences, length = map(int, workload.split("x"))
        lengths = torch.full((sequences,), length)
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    tokens = torch.randint(1, vocabulary, mask.shape, generator=torch.Generator().manual_seed(0))
    return tokens * mask, mask


def mixed_lengths() -> torch.Tensor:
    """Tokens of the 16 sequences of the mixed workload: 8 to 128, short ones are frequent, the mean is about 45."""
    more = torch.empty(16).exponential_(1 / 40, generator=torch.Generator().manual_seed(0))
    return (8 + more.long()).clamp(max=128)


def prepare(
    config: UltraFastBertConfig, names: Sequence[str], workloads: Sequence[str], directory: Path
) -> dict[tuple[str, str], torch.Tensor]:
    """Writes the files that contenders are loaded from.

    Args:
        config: of our encoder; BERT gets its sizes.
        names: of the contenders.
        workloads: that they will be timed with.
        directory: for the files.

    Returns:
        the outputs of the originals in float32, by original and workload.
    """
    quieten()
    torch.manual_seed(0)
    references = {}
    for name in dict.fromkeys(map(original, names)):
        ours = name == "ultrafastbert"
        model = UltraFastBertModel(config) if ours else BertModel(bert.bert_config(config), add_pooling_layer=False)
        bert.split_trees(model)
        model.eval().save_pretrained(directory / name)
        for graph in (graph for graph in names if original(graph) == name and "_onnx-" in graph):
            assert isinstance(model, UltraFastBertModel)
            write_graph(model, directory / f"{graph}.onnx", int8=graph.endswith("int8"))
        for workload in workloads:
            tokens, mask = inputs(workload, config.vocab_size)
            with torch.inference_mode():
                references[name, workload] = model(tokens, attention_mask=mask).last_hidden_state
    if any(name.startswith(PEERS) for name in names):
        bert.export(directory)
    if any(name.startswith("onnxruntime") for name in names):
        bert.fuse(directory, config)
    return references


def load(name: str, directory: Path, threads: int) -> bert.Encoder:
    """A contender, from the files that `prepare` wrote."""
    family, _, dtype = name.partition("-")
    if family == "onnxruntime":
        fused = (directory / bert.FUSED).read_text(encoding="utf-8")
        return bert.load_onnxruntime(directory / f"{name}.onnx", threads, fused)
    if family == "ultrafastbert_onnx":
        return bert.load_onnxruntime(directory / f"{name}.onnx", threads, "as `export onnx` writes it")
    if family == "openvino":
        return bert.load_openvino(directory / "bert.onnx", threads)
    if family == "optimized":
        weights, int8 = OPTIMIZED[dtype]
        model = UltraFastBertModel.from_pretrained(directory / "ultrafastbert")
        model = optimize_for_inference(model, dtype=weights, int8=int8, verbose=False)
        return _wrap(model, "; ".join(model.optimizations))  # pyright: ignore[reportCallIssue, reportArgumentType]
    if original(name) == "bert":
        model = BertModel.from_pretrained(directory / "bert", dtype=dtype, add_pooling_layer=False)
    else:
        model = UltraFastBertModel.from_pretrained(directory / "ultrafastbert", dtype=dtype)
    if not family.endswith("compiled"):
        return _wrap(model)
    model.compile(dynamic=False, options={"freezing": True})
    return _wrap(model, "torch.compile(dynamic=False, options={'freezing': True})")


def _wrap(model: nn.Module, note: str = "") -> bert.Encoder:
    # Packed weights are attributes of modules, neither parameters nor buffers.
    places = [place for m in model.modules() for place in (m._parameters, m._buffers, vars(m))]
    tensors = {id(value): value for place in places for value in place.values() if isinstance(value, torch.Tensor)}
    weights = sum(tensor.nbytes for tensor in tensors.values())
    return bert.Encoder(lambda tokens, mask: model(tokens, attention_mask=mask).last_hidden_state, weights, note)


def quieten() -> None:
    """Turns off progress bars and warnings of libraries."""
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger().setLevel(logging.ERROR)


def encode_three_times(name: str, directory: Path, threads: int, vocabulary: int) -> bert.Encoder:
    """Loads a contender in a new process, and encodes 8x128 three times."""
    quieten()
    torch.set_num_threads(threads)
    encoder = load(name, directory, threads)
    with torch.inference_mode():
        for _ in range(3):
            encoder.call(*inputs("8x128", vocabulary))
    return encoder
