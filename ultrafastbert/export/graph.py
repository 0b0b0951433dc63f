"""What exports of graphs have in common: the function that is exported, inputs, and the comparison with PyTorch."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ultrafastbert import UltraFastBertForMultipleChoice
from ultrafastbert.utils.errors import UserError

INPUTS = ("input_ids", "attention_mask")
TOLERANCE = 1e-3
"""Of graphs in float32; see `compare`."""
LONGEST_CHECKED = 128


class Outputs(nn.Module):
    """The function that is exported: tokens and mask in, the outputs of the head in their order."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Both `(batch, seq)` int64, or `(batch, choices, seq)` for multiple choice."""
        return self.model(input_ids, attention_mask=attention_mask).to_tuple()


def dynamic_shape(model: PreTrainedModel) -> dict[int, Any]:
    """The dimensions of both inputs that are dynamic, by place, with their names and limits."""
    longest = None if model.config.position_embedding == "rotary" else model.config.max_position_embeddings
    names = ["batch", *(["choices"] if isinstance(model, UltraFastBertForMultipleChoice) else [])]
    shape = {place: torch.export.Dim(name) for place, name in enumerate(names)}
    return shape | {len(names): torch.export.Dim("length", max=longest)}


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


def compare(
    model: PreTrainedModel, run: Callable[[dict[str, Tensor]], Sequence[Tensor]], tolerance: float, name: str
) -> str:
    """Compares an export with the model in PyTorch; returns a sentence about the difference.

    Args:
        model: in evaluation mode.
        run: what is compared, a function from inputs to outputs.
        tolerance: largest difference relative to the outputs (norm of a sequence's difference by norm of its output).
        name: of the file, for the message.

    Raises:
        UserError: more than one in four sequences differ by more than `tolerance`. So many may, because a token near a
            decision may take another path.
    """
    largest, relative = 0.0, []
    for batch in inputs_of(model):
        with torch.no_grad():
            expected = model(**batch).to_tuple()
        for output, reference in zip(run(batch), expected, strict=True):
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
        raise UserError(f"{name} is wrong by more than tolerance ({tolerance:g}), so it is not written; {found}")
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporter says about its own progress and about packages that are not needed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
