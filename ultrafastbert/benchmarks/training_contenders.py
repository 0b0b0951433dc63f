"""The models that the benchmark of training steps trains, each as pretraining trains it."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from transformers import BertForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput

from ultrafastbert import FFF, UltraFastBertConfig, UltraFastBertForMaskedLM
from ultrafastbert.benchmarks.bert import bert_config, build_config, split_trees
from ultrafastbert.benchmarks.harness import Contender, Ready
from ultrafastbert.pretraining.arguments import TrainArguments
from ultrafastbert.pretraining.data.batches import SequenceOrder
from ultrafastbert.pretraining.data.masking import MaskedBatch, Masker, masks_per_sequence
from ultrafastbert.pretraining.flops import training_flops
from ultrafastbert.pretraining.step import TrainingStep, to_device
from ultrafastbert.runs.backend import use_fastest_backends
from ultrafastbert.runs.precision import uses_bf16
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.hardware import utilization

if TYPE_CHECKING:
    from ultrafastbert.benchmarks.training import TrainingArguments

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


class Bert(nn.Module):
    """transformers' BERT, called as our models are: the loss is that of the masked positions."""

    def __init__(self, config: UltraFastBertConfig):
        super().__init__()
        self.config = bert_config(config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        self.bert = BertForMaskedLM(self.config)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, masked_positions: torch.Tensor) -> MaskedLMOutput:
        """Tokens and labels `(batch, seq)`, positions `(batch, masked)`, all int64."""
        wanted = torch.full_like(labels, -100).scatter(1, masked_positions, labels.gather(1, masked_positions))
        return self.bert(input_ids=input_ids, labels=wanted)


def _build_model(name: str, arguments: "TrainingArguments", backend: str = "") -> UltraFastBertForMaskedLM | Bert:
    """The model, with the same weights each time; `backend` overrides the one in its name."""
    set_seed(0)
    if name == "bert":
        return Bert(build_config(arguments, "1x0", arguments.sequence_length))
    size, named = (name, "") if name.startswith("dense-") else name.partition("-")[::2]
    model = UltraFastBertForMaskedLM(build_config(arguments, size, arguments.sequence_length))
    split_trees(model)
    for module in model.modules():
        if isinstance(module, FFF):
            module.backend = backend or named or None
    return model


class Steps:
    """Pretraining of a model on random tokens, on which speed does not depend."""

    def __init__(self, name: str, arguments: "TrainingArguments", accelerator: Accelerator):
        # With a low rate the loss stays finite: from random tokens nothing can be learned.
        train = TrainArguments(max_steps=1, lr=1e-5, compile=arguments.compile)
        self.name, self.arguments, self.device = name, arguments, accelerator.device
        self.probability, self.lr = train.mask_probability, train.lr
        shape = (max(1024, arguments.sequences), arguments.sequence_length)
        tokens = np.random.default_rng(0).integers(len(SPECIAL), arguments.vocabulary, shape, dtype=np.uint32)
        self.order = SequenceOrder(tokens, seed=0)
        self.masker = Masker(self.probability, arguments.vocabulary, SPECIAL, seed=0, device=self.device)
        self.place, self.worst = 0, torch.zeros(2, device=self.device)  # worst: loss and gradient norm
        expected = self._reference()
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if on_gpu else 0
        self.model = _build_model(name, arguments).to(self.device)
        in_bf16 = uses_bf16(arguments.precision, self.device, arguments.hidden_size)
        tokens = arguments.sequences * arguments.sequence_length
        use_fastest_backends(self.model, tokens, torch.bfloat16 if in_bf16 else torch.float32)
        self.training = TrainingStep(self.model, train, accelerator, in_bf16)
        self.error = ((self.step() - expected) / expected).abs().max().item()  # relative, the larger of the two
        self.step()  # with the state that the optimizer allocated in the first step
        self.memory = torch.cuda.max_memory_allocated() - before if on_gpu else None

    def _batch(self) -> MaskedBatch:
        sequences = self.order.read(self.place, self.arguments.sequences)
        return self.masker(to_device(sequences, self.device), self.place)

    def _reference(self) -> torch.Tensor:
        """Loss and gradient norm of the first step: sequence by sequence in float32, eager, by the `dense` backend."""
        model = _build_model(self.name, self.arguments, "dense").to(self.device).train()
        batch, count = self._batch(), self.arguments.sequences
        loss = torch.zeros((), device=self.device)
        for i in range(count):
            part = model(**{name: tensor[i : i + 1] for name, tensor in batch._asdict().items()}).loss / count
            part.backward()
            loss += part.detach()
        return torch.stack([loss, nn.utils.clip_grad_norm_(model.parameters(), torch.inf)])

    def step(self) -> torch.Tensor:
        """A step on the next micro-batch; returns its loss and gradient norm."""
        values = self.training.update(self.training.accumulate(self._batch()), self.lr)
        self.worst = torch.maximum(self.worst, values.where(values.isfinite(), torch.inf))
        self.place += self.arguments.sequences
        return values

    def facts(self, median: float) -> dict[str, float | str | None]:
        """What is recorded beside the times.

        Raises:
            UserError: a step did not update the weights, which takes less time than one that does.
        """
        loss, norm = self.worst.tolist()
        if not self.worst.isfinite().all():
            raise UserError(
                f"{self.name}: the loss grew to {loss}, the gradient norm to {norm}; steps that do not update the"
                " weights are not timed"
            )
        sequences, length = self.arguments.sequences, self.arguments.sequence_length
        flops = training_flops(self.model.config, sequences, length, masks_per_sequence(length, self.probability))
        dtype = torch.bfloat16 if self.training.in_bf16 else torch.float32
        layers = [module for module in self.model.modules() if isinstance(module, FFF)]
        return {
            "backend": ", ".join(sorted({layer.backend or "by rule" for layer in layers})),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "tokens_per_second": sequences * length / median,
            "memory": self.memory,
            "mfu": utilization(flops, median, self.device, dtype),
        }


def contender(name: str, arguments: "TrainingArguments", accelerator: Accelerator) -> Contender:
    """A model whose training steps are timed."""

    def set_up() -> Ready:
        steps = Steps(name, arguments, accelerator)
        return Ready(steps.step, lambda _: steps.error, steps.facts)

    bf16 = uses_bf16(arguments.precision, accelerator.device, arguments.hidden_size)
    return Contender(name, set_up, dtype="bfloat16" if bf16 else "float32")
