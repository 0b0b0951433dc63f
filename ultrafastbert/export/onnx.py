"""`ultrafastbert export onnx`: a model as one graph of standard operators, checked in ONNX Runtime.

Trees are unrolled (`unrolled.py`), so the graph runs wherever ONNX does. The number of sequences and their length are
dynamic.
"""

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ultrafastbert.export.graph import INPUTS, TOLERANCE, Outputs, compare, dynamic_shape, inputs_of, quiet
from ultrafastbert.export.loading import load_model
from ultrafastbert.export.unrolled import unroll
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import copy_tokenizer, new_directory, written_whole
from ultrafastbert.utils.validation import NOT_EMPTY, POSITIVE, check_fields

FILE = "model.onnx"
OPSET = 18
NEEDED = ("onnx", "onnxruntime", "onnxscript")
LARGEST_FILE = 1_900_000_000
"""Weights of more bytes are written beside the graph, because a file of the format is at most 2 GiB."""
INT8_TOLERANCE = 0.1


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
            tolerance = arguments.tolerance or (INT8_TOLERANCE if arguments.int8 else TOLERANCE)
            print(compare(model, load_graph(directory / FILE), tolerance, FILE))
            _write_config(model, directory)
            copy_tokenizer(Path(arguments.model), directory)
    except OSError as error:
        raise UserError(str(error)) from error
    print(f"wrote {destination}: {', '.join(sorted(file.name for file in destination.iterdir()))}")


def _write_config(model: PreTrainedModel, directory: Path) -> None:
    """Writes config.json, which has the names of labels, without the reference to code that is not there."""
    config = copy.copy(model.config)
    vars(config).pop("auto_map", None)
    config.to_json_file(directory / "config.json")


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
    with quiet():
        program = torch.onnx.export(
            Outputs(unrolled),
            tuple(batches[0].values()),
            dynamo=True,
            dynamic_shapes=dict.fromkeys(INPUTS, dynamic_shape(model)),
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


def load_graph(path: Path) -> Callable[[dict[str, Tensor]], list[Tensor]]:
    """A graph in ONNX Runtime, as a function from inputs to outputs."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, Tensor]) -> list[Tensor]:
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return [torch.from_numpy(output) for output in outputs]

    return run
