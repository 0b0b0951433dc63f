"""What a model accepts as inputs, checked once where they enter, whatever computes them afterwards.

Shapes and dtypes are always checked, also while a model is compiled or exported, where the checks become guards.
Values are read only where that costs nothing: on a CPU, outside compiled code.
"""

import torch
from torch import Tensor

Inputs = dict[str, Tensor | None]
DIMENSIONS = ("batch", "seq")
INTEGERS = (torch.int64, torch.int32)


def select_inputs(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """The one of the two that is given; raises a ValueError if both or neither are."""
    given = [tensor for tensor in (input_ids, inputs_embeds) if tensor is not None]
    if len(given) != 1:
        raise ValueError("exactly one of input_ids and inputs_embeds should be given")
    return given[0]


def check_inputs(
    inputs: Inputs, vocab_size: int, hidden_size: int, dimensions: tuple[str, ...] = DIMENSIONS
) -> torch.Size:
    """Checks the inputs of an encoder, and returns the size of the batch: `(batch, seq)`, or that of `dimensions`.

    Args:
        inputs: the arguments of `UltraFastBertModel.forward` by name.
        vocab_size: ids are less than that.
        hidden_size: width of embeddings.
        dimensions: names of the dimensions of `input_ids`, for messages. A 4-D `attention_mask` is accepted only if
            there are two.

    Raises:
        ValueError: names the argument, what it is and what it should be.
    """
    input_ids, embeds = inputs["input_ids"], inputs["inputs_embeds"]
    named = ", ".join(dimensions)
    size = select_inputs(input_ids, embeds).shape[: len(dimensions)]
    if input_ids is not None:
        _check_rank("input_ids", input_ids, input_ids.dim() == len(dimensions), f"({named})")
        _check_integers("input_ids", input_ids)
        check_values("input_ids", input_ids, vocab_size, "vocab_size")
    elif embeds is not None:
        fits = embeds.dim() == len(dimensions) + 1 and embeds.shape[-1] == hidden_size
        _check_rank("inputs_embeds", embeds, fits, f"({named}, {hidden_size})")
        if not embeds.is_floating_point():
            raise ValueError(f"inputs_embeds has dtype {embeds.dtype}; it should have a floating-point dtype")
    if size[-1] == 0:
        name = "input_ids" if embeds is None else "inputs_embeds"
        raise ValueError(f"{name} has sequences of 0 tokens; they should have at least one")
    _check_mask(inputs["attention_mask"], size, named)
    for name in ("position_ids", "token_type_ids"):
        if (ids := inputs.get(name)) is not None:
            if ids.shape != size and ids.shape != (1, *size[1:]):
                shape = tuple(ids.shape)
                raise ValueError(
                    f"{name} has shape {shape}; it should be ({named}), here {tuple(size)}, or {(1, *size[1:])}"
                )
            _check_integers(name, ids)
    return size


def _check_mask(mask: Tensor | None, size: torch.Size, named: str) -> None:
    if not isinstance(mask, Tensor) or mask.shape == size:  # flex attention's masks are objects of their own
        return
    if len(size) == 2 and mask.dim() == 4:
        batch, length = size
        if mask.shape[-1] == length and mask.shape[-2] in (1, length) and mask.shape[0] in (1, batch):
            return
    shape, four = tuple(mask.shape), ", or 4-D, (batch or 1, heads or 1, seq or 1, seq)" if len(size) == 2 else ""
    raise ValueError(f"attention_mask has shape {shape}; it should be ({named}), here {tuple(size)}{four}")


def check_labels(name: str, labels: Tensor | None, *shapes: tuple[int, ...]) -> None:
    """Raises a ValueError unless labels are None or have one of the shapes; most losses flatten what they get."""
    if labels is not None and tuple(labels.shape) not in shapes:
        expected = " or ".join(map(str, shapes))
        raise ValueError(f"{name} has shape {tuple(labels.shape)}; it should be {expected}")


def check_values(name: str, tensor: Tensor, limit: int, limit_name: str) -> None:
    """Raises a ValueError unless all values are at least 0 and less than the limit; reads them on a CPU only."""
    if type(tensor) is not Tensor or not tensor.is_cpu or not tensor.numel() or torch.compiler.is_compiling():
        return
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return
    lowest, highest = tensor.aminmax()
    if lowest < 0 or highest >= limit:
        raise ValueError(
            f"{name} has values in [{lowest}, {highest}]; they should be in [0, {limit - 1}], because {limit_name} is"
            f" {limit}"
        )


def _check_rank(name: str, tensor: Tensor, fits: bool, expected: str) -> None:
    if not fits:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it should be {expected}")


def _check_integers(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in INTEGERS:
        raise ValueError(f"{name} has dtype {tensor.dtype}; it should be int64 or int32")
