"""Configurations of our encoder and of transformers' BERT, and BERT's exports for ONNX Runtime and OpenVINO."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import BertConfig, BertModel

from ultrafastbert import HardFFF, UltraFastBertConfig
from ultrafastbert.pretraining.arguments import ModelArguments

NAMES = ["input_ids", "attention_mask", "last_hidden_state"]
FUSED = "fused.txt"
"""The file that states how many attention layers were fused."""


class Encoder(NamedTuple):
    """A loaded encoder; `call` takes tokens and mask, both `(batch, seq)` int64."""

    call: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # returns `(batch, seq, hidden)`
    weights: int  # the size of its tensors, or of the file that a runtime reads [bytes]
    note: str = ""


def build_config(arguments: Any, size: str, length: int) -> UltraFastBertConfig:
    """Our encoder with feedforward layers of this size for sequences of this length.

    Raises:
        ValueError: sizes in `arguments` that do not fit together.
    """
    sizes = {key: getattr(arguments, key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    try:
        return ModelArguments(fff=size, **sizes).build_config(arguments.vocabulary, length)
    except StrictDataclassError as error:
        raise ValueError(str(error)) from None


def split_trees(model: nn.Module) -> None:
    """Makes the decisions of trees with leaves from random tokens, so that all leaves are used."""
    for module in model.modules():
        if isinstance(module, HardFFF):
            module.split_by_variance(torch.randn(16 * 2**module.depth, module.input_size))


def bert_config(config: UltraFastBertConfig, **options: Any) -> BertConfig:
    """BERT in the sizes of our model, with feedforward layers of four times its width."""
    names = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"]
    sizes = {name: getattr(config, name) for name in names}
    return BertConfig(intermediate_size=4 * config.hidden_size, **sizes, **options)


class LastHiddenState(nn.Module):
    """The graph that is exported: tokens and mask in, hidden states out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Both `(batch, seq)` int64 -> `(batch, seq, hidden)`."""
        return self.model(input_ids, attention_mask=attention_mask).last_hidden_state


def export(directory: Path) -> None:
    """Writes bert.onnx, with the exporter and the attention whose nodes ONNX Runtime can fuse."""
    model = BertModel.from_pretrained(directory / "bert", attn_implementation="eager", add_pooling_layer=False)
    tokens = torch.ones(2, 8, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tracing; the harness compares the outputs
        torch.onnx.export(
            LastHiddenState(model.eval()),
            (tokens, tokens),
            directory / "bert.onnx",
            dynamo=False,
            input_names=NAMES[:2],
            output_names=NAMES[2:],
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in NAMES},
        )


def fuse(directory: Path, config: UltraFastBertConfig) -> None:
    """Writes onnxruntime-float32.onnx, and onnxruntime-int8.onnx whose matrices are dynamically quantized."""
    import onnx  # pyright: ignore[reportMissingImports]
    from onnxruntime.quantization import QuantType, quantize_dynamic  # pyright: ignore[reportMissingImports]
    from onnxruntime.transformers import optimizer  # pyright: ignore[reportMissingImports]

    source, path = str(directory / "bert.onnx"), directory / "onnxruntime-float32.onnx"
    model = optimizer.optimize_model(
        source, model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size, opt_level=0
    )
    model.save_model_to_file(str(path))
    options = {"weight_type": QuantType.QInt8, "extra_options": {"DefaultTensorType": onnx.TensorProto.FLOAT}}
    quantize_dynamic(path, directory / "onnxruntime-int8.onnx", **options)
    note = f"{model.get_fused_operator_statistics()['Attention']} of {config.num_hidden_layers} attention layers fused"
    (directory / FUSED).write_text(note, encoding="utf-8")


def load_onnxruntime(path: Path, threads: int, note: str) -> Encoder:
    """A model of ONNX Runtime, with a note for the table."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin after a call would slow down the contender whose turn is next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def call(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        (output,) = session.run(None, {"input_ids": tokens.numpy(), "attention_mask": mask.numpy()})
        return torch.from_numpy(output)

    return Encoder(call, path.stat().st_size, note)


def load_openvino(path: Path, threads: int) -> Encoder:
    """A model of OpenVINO, in the precision that it chooses."""
    import openvino  # pyright: ignore[reportMissingImports]

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()

    def call(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        outputs = compiled({"input_ids": tokens.numpy(), "attention_mask": mask.numpy()})
        return torch.from_numpy(outputs[compiled.output(0)])

    return Encoder(call, path.stat().st_size, f"computes in {precision}; weights are those of the file")
