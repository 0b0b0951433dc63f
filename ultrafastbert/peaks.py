"""What a GPU can do at most, by its data sheet, and what arithmetic a model needs: floors under times, and MFU.

Arithmetic is counted as the function needs it, whatever an implementation computes besides: of a tree the neurons on a
token's path alone. So a tree's share of the peak is small where its time is spent on memory.
"""

from typing import NamedTuple

import torch
from transformers import PreTrainedConfig

from .timing import device_name


class Peak(NamedTuple):
    bandwidth: float  # bytes a second of the GPU's memory
    flops: dict[torch.dtype, float]  # floating-point operations a second, dense


HOPPER = {torch.bfloat16: 989.4e12, torch.float16: 989.4e12, torch.float32: 66.9e12}
"""On tensor cores without sparsity; float32 as PyTorch multiplies it by default, without TF32."""

PEAKS = {"NVIDIA H100 80GB HBM3": Peak(3.35e12, HOPPER), "NVIDIA H200": Peak(4.8e12, HOPPER)}
"""By the name that `torch.cuda.get_device_name` gives; the H100 of this name is the SXM one.

Source: NVIDIA's data sheets of the H100 and H200 (SXM), whose rates of tensor cores are halved because they assume
sparsity, and the white paper "NVIDIA H100 Tensor Core GPU Architecture" for the digits after the point.
"""


def training_flops(config: PreTrainedConfig, rows: float, sequence_length: int, masked: int) -> float:
    """Floating-point operations of the products in a forward and a backward pass of a masked language model.

    Args:
        config: of an `UltraFastBertForMaskedLM` or a `BertForMaskedLM`.
        rows: rows of the batch.
        sequence_length: tokens of a row; all of them are attended to.
        masked: tokens of a row that are predicted; the decoder is counted there only.

    Source: 6 operations a weight and token, 12 for each pair of tokens and column of attention: arXiv 2204.02311,
    appendix B.
    """
    hidden = config.hidden_size
    has_trees = getattr(config, "feedforward", "dense") == "fff"
    neurons = config.fff_trees * (config.fff_depth + 1) if has_trees else config.intermediate_size
    attention = 4 * hidden**2 + 2 * sequence_length * hidden  # weights, and what stands for weights
    encoder = rows * sequence_length * config.num_hidden_layers * (attention + 2 * neurons * hidden)
    return 6 * (encoder + rows * masked * hidden * config.vocab_size)


def utilisation(flops: float, seconds: float, device: torch.device | str, dtype: torch.dtype) -> float | None:
    """MFU: the share of the device's peak that `flops` in `seconds` are; None where its peak is not known.

    Args:
        flops: operations that a model needs, as `training_flops` counts them.
        seconds: that they took.
        device: that they ran on.
        dtype: of the products.
    """
    peak = PEAKS.get(device_name(device))
    return None if peak is None else flops / seconds / peak.flops[dtype]
