"""`ultrafastbert export onnx`: a model as one graph of standard operators, checked in ONNX Runtime.

Trees are unrolled (`unrolled.py`), so the graph runs wherever ONNX does. The number of sequences and their length are
dynamic.
"""

import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ultrafastbert import UltraFastBertForMultipleChoice
from ultrafastbert.export.loading import load_model
from ultrafastbert.export.unrolled import unroll
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import copy_tokenizer, new_directory, written_whole
from ultrafastbert.utils.validation import NOT_EMPTY, POSITIVE, check_fields

FILE = "model.onnx"
OPSET = 18
NEEDED = ("onnx", "onnxruntime", "onnxscript")
INPUTS = ("input_ids", "attention_mask")
LARGEST_FILE = 1_900_000_000
"""Weights of more bytes are written beside the graph, because a file of the format is at most 2 GiB."""
TOLERANCE, INT8_TOLERANCE = 1e-3, 0.1
LONGEST_CHECKED = 128


@dataclass
class OnnxArguments:
    """Options of `ultrafastbert export onnx`."""

    model: str
    """Directory of the model, as pretraining and fine-tuning leave it."""
    output_dir: str
    """Directory to create, for model.onnx, config.json and the tokenizer; it must not exist, or be empty."""
    int8: bool = False
    """Whether the projections of the encoder (attention and dense feedforward layers) have int8 weights and multiply
    in int8, with a scale for each batch that is computed as it runs. Trees, embeddings and heads stay in float32."""
    tolerance: float | None = None
    """Largest difference from PyTorch that is accepted, relative to the outputs (norm of a sequence's difference by
    norm of its output). One in four sequences may differ more, since a token near a decision may take another path.
    [null: 0.001, and 0.1 with int8]"""

    def __post_init__(self):
        check_fields(self, NOT_EMPTY, "model", "output_dir")
        check_fields(self, POSITIVE, "tolerance")


def export_onnx(arguments: OnnxArguments) -> None:
    """Writes `OUT/model.onnx`, compares it with PyTorch, and prints the largest difference.

    Raises:
        UserError: a package is missing, the model cannot be loaded, the directory cannot be written, or the outputs
            differ by more than the tolerance; then nothing is written.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"export onnx needs {', '.join(missing)}: pip install 'ultrafastbert[export]'")
    model = load_model(arguments.model)
    try:
        destination = new_directory(arguments.output_dir)
        with written_whole(destination) as directory:
            write_graph(model, directory / FILE, arguments.int8)
            print(check_graph(model, directory / FILE, arguments.tolerance or _tolerance(arguments.int8)))
            _write_config(model, directory)
            copy_tokenizer(Path(arguments.model), directory)
    except OSError as error:
        raise UserError(str(error)) from error
    print(f"wrote {destination}: {', '.join(sorted(file.name for file in destination.iterdir()))}")


def _tolerance(int8: bool) -> float:
    return INT8_TOLERANCE if int8 else TOLERANCE


def _write_config(model: PreTrainedModel, directory: Path) -> None:
    """Writes config.json, which has the names of labels, without the reference to code that is not there."""
    config = copy.copy(model.config)
    vars(config).pop("auto_map", None)
    config.to_json_file(directory / "config.json")


class Outputs(nn.Module):
    """The function that is exported: tokens and mask in, the outputs of the head in their order."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Both `(batch, seq)` int64, or `(batch, choices, seq)` for multiple choice."""
        return self.model(input_ids, attention_mask=attention_mask).to_tuple()


def write_graph(model: PreTrainedModel, path: Path, int8: bool = False) -> None:
    """Writes a model in evaluation mode to one file, or two if it has more than 1.9 GB of weights.

    Args:
        model: the encoder or one of its heads.
        path: of the graph; a second file is PATH.data.
        int8: whether the projections are quantized.
    """
    unrolled = unroll(model)
    unrolled.set_attn_implementation("eager")  # standard operators; others have variants that ONNX does not know
    batches = inputs_of(model)
    with torch.no_grad():
        names = list(model(**batches[0]).keys())
    with _quiet():
        program = torch.onnx.export(
            Outputs(unrolled),
            tuple(batches[0].values()),
            dynamo=True,
            dynamic_shapes=dict.fromkeys(INPUTS, _dynamic_shape(model)),
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=names,
            verbose=False,
        )
        assert program is not None
        size = sum(tensor.nbytes for tensor in unrolled.state_dict().values())
        program.save(path, external_data=size > LARGEST_FILE)
        if int8:
            _quantize(path, _projections(program))


def _dynamic_shape(model: PreTrainedModel) -> dict[int, Any]:
    longest = None if model.config.position_embedding == "rotary" else model.config.max_position_embeddings
    names = ["batch", *(["choices"] if isinstance(model, UltraFastBertForMultipleChoice) else [])]
    shape = {place: torch.export.Dim(name) for place, name in enumerate(names)}
    return shape | {len(names): torch.export.Dim("length", max=longest)}


def _projections(program: Any) -> list[str]:
    """The nodes of linear layers inside the encoder's layers."""
    nodes = [node for node in program.model.graph if node.op_type in ("MatMul", "Gemm")]
    scopes = {node.name: node.metadata_props.get("pkg.torch.onnx.name_scopes", "") for node in nodes}
    return [name for name, scope in scopes.items() if ".layers." in scope and "_proj'" in scope]


def _quantize(path: Path, nodes: list[str]) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic  # pyright: ignore[reportMissingImports]

    quantized = path.with_suffix(".int8")
    quantize_dynamic(path, quantized, nodes_to_quantize=nodes, weight_type=QuantType.QInt8, per_channel=True)
    quantized.replace(path)


def inputs_of(model: PreTrainedModel) -> list[dict[str, Tensor]]:
    """Two batches of random tokens, of different shapes: sequences that are full, or padded on either side."""
    generator = torch.Generator().manual_seed(0)
    longest = min(LONGEST_CHECKED, model.config.max_position_embeddings)
    batches = []
    for sequences, length in ((8, longest), (4, (longest + 1) // 2)):
        input_ids = torch.randint(model.config.vocab_size, (sequences, length), generator=generator)
        mask = torch.ones_like(input_ids)
        mask[1::4, (length + 1) // 2 :] = 0
        mask[2::4, : length // 3] = 0
        if isinstance(model, UltraFastBertForMultipleChoice):  # two choices each
            input_ids, mask = input_ids.unflatten(0, (-1, 2)), mask.unflatten(0, (-1, 2))
        batches.append(dict(zip(INPUTS, (input_ids, mask), strict=True)))
    return batches


def check_graph(model: PreTrainedModel, path: Path, tolerance: float) -> str:
    """Compares a graph in ONNX Runtime with the model in PyTorch; returns a sentence about the difference.

    Raises:
        UserError: more than one in four sequences differ by more than `tolerance`; the message has the same numbers.
    """
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    largest, relative = 0.0, []
    for batch in inputs_of(model):
        with torch.no_grad():
            expected = model(**batch).to_tuple()
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
        for output, reference in zip(map(torch.from_numpy, outputs), expected, strict=True):
            reference, difference = reference.double(), output.double() - reference.double()
            if not hasattr(model, "pooler"):  # outputs for tokens; those of padding mean nothing
                padding = (batch["attention_mask"] == 0).view(*reference.shape[:2], *[1] * (reference.dim() - 2))
                reference, difference = (t.masked_fill(padding, 0) for t in (reference, difference))
            largest = max(largest, difference.abs().max().item())
            norms = [t.flatten(1).norm(dim=1) for t in (difference, reference)]
            relative += (norms[0] / norms[1]).tolist()
    ordered = sorted(relative, key=lambda value: value if value == value else float("inf"))
    quartile = ordered[3 * len(ordered) // 4]
    found = (
        f"compared with PyTorch on {len(relative)} sequences: largest difference {largest:.2g}; relative to a"
        f" sequence's outputs, {quartile:.2g} in three of four, at most {ordered[-1]:.2g}"
    )
    if not quartile <= tolerance:
        raise UserError(f"{path.name} is wrong by more than tolerance ({tolerance:g}), so it is not written; {found}")
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says about its own progress and about packages that are not needed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
