"""The memory of a model, from its configuration: a model that cannot fit is refused before anything is built."""

from typing import Any

import torch

from ultrafastbert.utils.hardware import memory_size

PYTHON_BYTES = 20_000
"""Of the objects of a layer, at least."""


def parameters_by_part(config: Any) -> dict[str, int]:
    """About as many numbers as an encoder has, by the options that decide them."""
    width, layers = config.hidden_size, config.num_hidden_layers
    embedding = config.embedding_size or width
    feedforward = sum(2 * width * size.neurons for size in config.sizes_by_layer)
    positions = 0 if config.position_embedding == "rotary" else config.max_position_embeddings * embedding
    return {
        f"embeddings (vocab_size {config.vocab_size:,} x width {embedding:,})": config.vocab_size * embedding,
        f"positions (max_position_embeddings {config.max_position_embeddings:,} x width {embedding:,})": positions,
        f"attention (num_hidden_layers {layers:,}, hidden_size {width:,})": layers * 4 * width**2,
        f"feedforward layers (num_hidden_layers {layers:,}, hidden_size {width:,})": feedforward,
    }


def check_memory(config: Any) -> None:
    """Compares the memory of an encoder, in PyTorch's default dtype, to that of this machine.

    Raises:
        ValueError: it needs more; the message names the part that needs most.
    """
    parts = parameters_by_part(config)
    size = torch.get_default_dtype().itemsize
    needed, available = size * sum(parts.values()) + config.num_hidden_layers * PYTHON_BYTES, memory_size()
    if needed > available:
        largest = max(parts, key=lambda part: parts[part])
        raise ValueError(
            f"a model of this configuration needs at least {needed / 1e9:,.1f} GB, and this machine has"
            f" {available / 1e9:,.1f} GB of memory; {size * parts[largest] / 1e9:,.1f} GB are for {largest}"
        )
