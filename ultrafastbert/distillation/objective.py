"""What the student learns: the hidden states of its teacher, and what the teacher is used for.

- Hidden states after each layer, at real tokens: the squared error relative to the variance of the teacher's.
- Sentence vectors, if the model makes some: 1 - cosine to the teacher's, and the error of the similarities between the
  sentences of a batch.
- Logits, if the model has a head: the Kullback-Leibler divergence from the teacher's, or the squared error of a
  regression.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ultrafastbert.conversion.files import read_json
from ultrafastbert.distillation.texts import TextBatch
from ultrafastbert.modeling_ultrafastbert import (
    UltraFastBertForMaskedLM,
    UltraFastBertForMultipleChoice,
    UltraFastBertForQuestionAnswering,
    UltraFastBertForSequenceClassification,
    UltraFastBertPreTrainedModel,
)
from ultrafastbert.utils.errors import UserError

Pooling = Literal["mean", "cls"]
POOLINGS: dict[str, Pooling] = {
    "mean": "mean",
    "cls": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}
"""Names in files of sentence-transformers."""
MASKED = 0.15
"""Of the tokens, for masked language models."""
SIMILARITY_WEIGHT = 10.0
"""Errors of similarities are an order smaller than those of vectors."""


@dataclass
class Outputs:
    """Outputs of a model for a batch.

    Attributes:
        hidden: after each layer, `(layers, tokens, hidden)` at real tokens.
        vectors: `(batch, hidden)` sentence vectors of length 1; None if the model makes none.
        logits: `(..., classes)`; None without a head.
    """

    hidden: Tensor
    vectors: Tensor | None
    logits: Tensor | None


class Objective:
    """The loss of a student, and measures of how close it is to its teacher.

    Args:
        model: the teacher; its class decides which logits are compared.
        tokenizer: of the model.
        pooling: of sentence vectors; None: they are not compared.

    Raises:
        UserError: a model of multiple choice, which has no use for single texts.
    """

    def __init__(
        self, model: UltraFastBertPreTrainedModel, tokenizer: PreTrainedTokenizerBase, pooling: Pooling | None
    ):
        if isinstance(model, UltraFastBertForMultipleChoice):
            raise UserError("model is one of multiple choice; distil the encoder, and fine-tune the student again")
        self.pooling: Pooling | None = pooling
        self.mask_token_id: Any = None
        self.special = torch.tensor(tokenizer.all_special_ids)
        if isinstance(model, UltraFastBertForMaskedLM):
            self.mask_token_id = tokenizer.mask_token_id
            if self.mask_token_id is None:
                raise UserError("the model is a masked language model; its tokenizer should have a mask token")

    def prepare(self, batch: TextBatch, seed: int) -> dict[str, Tensor]:
        """The inputs of both models; tokens are masked for a masked language model."""
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if self.mask_token_id is not None:
            generator = torch.Generator().manual_seed(seed)
            masked = torch.rand(batch.input_ids.shape, generator=generator) < MASKED
            masked &= ~torch.isin(batch.input_ids, self.special)
            inputs["input_ids"] = batch.input_ids.masked_fill(masked, self.mask_token_id)
        return inputs

    def run(self, model: UltraFastBertPreTrainedModel, inputs: dict[str, Tensor]) -> Outputs:
        """The outputs of the teacher or the student."""
        real = inputs["attention_mask"].bool()
        outputs: Any = model(**inputs, output_hidden_states=True)
        hidden = torch.stack([states[real] for states in outputs.hidden_states[1:]])
        vectors = None
        if self.pooling is not None:
            vectors = F.normalize(self._pool(outputs.hidden_states[-1], inputs["attention_mask"]).float(), dim=-1)
        return Outputs(hidden, vectors, self._logits(model, outputs, inputs, real))

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        if self.pooling == "cls":
            return states[:, 0]
        weights = mask[..., None].to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)

    def _logits(
        self, model: UltraFastBertPreTrainedModel, outputs: Any, inputs: dict[str, Tensor], real: Tensor
    ) -> Tensor | None:
        if isinstance(model, UltraFastBertForQuestionAnswering):
            logits = torch.stack([outputs.start_logits, outputs.end_logits])
            return logits.masked_fill(~real, torch.finfo(logits.dtype).min)
        if isinstance(model, UltraFastBertForMaskedLM):
            return outputs.logits[inputs["input_ids"] == self.mask_token_id]
        logits = getattr(outputs, "logits", None)
        if logits is None or isinstance(model, UltraFastBertForSequenceClassification):
            return logits
        return logits[real]

    def loss(self, student: Outputs, teacher: Outputs) -> Tensor:
        """A scalar, float32."""
        loss = unexplained(student.hidden, teacher.hidden).mean()
        if student.vectors is not None and teacher.vectors is not None:
            loss = loss + (1 - (student.vectors * teacher.vectors).sum(-1)).mean()
            similarities = [vectors @ vectors.T for vectors in (student.vectors, teacher.vectors)]
            loss = loss + SIMILARITY_WEIGHT * (similarities[0] - similarities[1]).square().mean()
        if student.logits is not None and teacher.logits is not None and student.logits.numel():
            loss = loss + divergence(student.logits.float(), teacher.logits.float())
        return loss


def find_pooling(directory: Path) -> Pooling | None:
    """The pooling of a directory of sentence-transformers, whose files say it; None for any other directory.

    Raises:
        UserError: it is another than mean and cls.
    """
    files = sorted(directory.glob("*_Pooling/config.json"))
    if not files:
        return None
    config = read_json(files[0])
    found = {name for name, value in config.items() if name.startswith("pooling_mode_") and value is True}
    if "pooling_mode" in config:  # sentence-transformers 6; earlier versions have a field for each mode
        found = {config["pooling_mode"]} if isinstance(config["pooling_mode"], str) else set(config["pooling_mode"])
    mode = POOLINGS.get(found.pop()) if len(found) == 1 else None
    if mode is None:
        raise UserError(f"{files[0]} has another pooling than mean or cls; set pooling to mean, cls or none")
    return mode


def unexplained(student: Tensor, teacher: Tensor) -> Tensor:
    """The fraction of the teacher's variance that is missing in the student, by layer: `(layers, tokens, hidden)`."""
    student, teacher = student.float(), teacher.float()
    variance = (teacher - teacher.mean(1, keepdim=True)).square().mean((1, 2))
    return (student - teacher).square().mean((1, 2)) / variance.clamp(min=1e-12)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean Kullback-Leibler divergence over `(..., classes)`; of one class, a regression, the squared error."""
    if student.shape[-1] == 1:
        return (student - teacher).square().mean()
    log_student, log_teacher = (logits.log_softmax(-1).flatten(0, -2) for logits in (student, teacher))
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
