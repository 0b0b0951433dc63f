"""Pretrains transformers' BERT under its Trainer, for comparison with a configuration of `ultrafastbert pretrain`.

    python scripts/pretrain_bert.py --config configs/two-cores.yaml --data.source books.txt --output_dir out/bert

Data, tokenizer, width, layers, heads, budget, validation and seed are those of the configuration. Everything else is
the default of transformers: BertForMaskedLM with absolute positions, feedforward layers of four times the width and
dropout; Trainer's AdamW, learning rate and batch size; 15 % of the tokens masked by its collator. The learning rate
falls linearly to zero over the budget, as by default it does over the steps. Validation is not part of the budget, as
it is of that of `ultrafastbert pretrain`. `ultrafastbert plot` compares runs.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from ultrafastbert.benchmarks.bert import bert_config
from ultrafastbert.cli import parse_arguments
from ultrafastbert.pretraining.arguments import PretrainArguments
from ultrafastbert.pretraining.data.batches import MaskedBatches
from ultrafastbert.pretraining.data.packed import PackedData
from ultrafastbert.pretraining.data.prepare import prepare
from ultrafastbert.runs.directory import FINAL, METRICS
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.validation import POSITIVE, check_fields

EVALUATIONS = 20


@dataclass
class BertArguments(PretrainArguments):
    """Options of `ultrafastbert pretrain`, of which model sizes, data, budget_hours, validation and seed are used."""

    bert_lr: float = TrainingArguments().learning_rate
    """Learning rate of BERT."""
    bert_batch_size: int = TrainingArguments().per_device_train_batch_size
    """Batch of BERT. [sequences]"""

    def __post_init__(self):
        super().__post_init__()
        check_fields(self, POSITIVE, "bert_lr", "bert_batch_size")


class Sequences(torch.utils.data.Dataset):
    """The sequences of a split, as Trainer's collators take them."""

    def __init__(self, sequences: np.ndarray):
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.from_numpy(self.sequences[index].astype(np.int64))}


class Clock(TrainerCallback):
    """Ends the training when its time is over, and validates at even intervals, for which the clock stops."""

    def __init__(self, arguments: BertArguments, data: PackedData, seconds: float):
        self.batches = MaskedBatches(arguments, data, torch.device("cpu"))
        self.size, self.budget, self.start = arguments.train.micro_batch_size, seconds, time.monotonic()
        self.tokens_per_step = arguments.bert_batch_size * data.sequence_length
        self.path, self.lines = Path(arguments.output_dir) / METRICS, []

    def fraction(self) -> float:
        """Of the time that is spent, 0 to 1."""
        return min(1.0, (time.monotonic() - self.start) / self.budget)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self.start = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Validates if it is time, and ends the training."""
        if self.fraction() >= (len(self.lines) + 1) / EVALUATIONS:
            position = {"step": state.global_step, "budget_fraction": round(self.fraction(), 6)}
            position |= {"tokens": state.global_step * self.tokens_per_step}
            position |= {"seconds": round(time.monotonic() - self.start, 3)}
            before = time.monotonic()
            loss, accuracy = self.evaluate(model)
            self.start += time.monotonic() - before
            self.lines.append(position | {"validation_loss": loss, "validation_accuracy": accuracy})
            self.path.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
            print(f"{position['seconds'] / 60:.1f} minutes, {loss:.3f} nats, accuracy {accuracy:.1%}", flush=True)
        control.should_training_stop = self.fraction() == 1

    @torch.no_grad()
    def evaluate(self, model: BertForMaskedLM) -> tuple[float, float]:
        """Loss in nats and accuracy, at the masks at which `ultrafastbert pretrain` validates."""
        model.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        for start in range(0, len(self.batches.validation), self.size):
            batch = self.batches.validation_masker(self.batches.validation[start : start + self.size], start)
            hidden_states = model.bert(batch.input_ids).last_hidden_state
            index = batch.masked_positions[..., None].expand(-1, -1, hidden_states.shape[-1])
            logits = model.cls(hidden_states.gather(1, index)).flatten(0, 1)  # logits of all tokens take far longer
            labels = batch.labels.gather(1, batch.masked_positions).flatten()
            loss = cross_entropy(logits, labels, reduction="sum")
            sums += torch.stack([loss, (logits.argmax(-1) == labels).sum(), (labels != -100).sum()])
        model.train()
        return (sums[0] / sums[2]).item(), (sums[1] / sums[2]).item()


class TimedTrainer(Trainer):
    """A Trainer whose learning rate falls to zero with the time that is spent."""

    def __init__(self, clock: Clock, **kwargs: Any):
        super().__init__(callbacks=[clock], **kwargs)
        self.clock = clock

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Linear in time in place of steps, whose number is not known in advance."""
        chosen: Any = optimizer or self.optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(chosen, lambda _: 1 - self.clock.fraction())
        return self.lr_scheduler


def main(arguments: BertArguments) -> None:
    """Trains, and writes metrics.jsonl and final/ (model and tokenizer) to the output directory.

    Raises:
        UserError: the configuration has no budget of time, or the directory holds an earlier run.
    """
    if arguments.train.budget_hours is None:
        raise UserError("train.budget_hours is None; it should be given, because the models get equal time")
    output = Path(arguments.output_dir)
    if (output / METRICS).exists():
        raise UserError(f"{output / METRICS} is of an earlier run; choose another output_dir")
    output.mkdir(parents=True, exist_ok=True)
    data = prepare(arguments.data)
    set_seed(arguments.seed)
    model = BertForMaskedLM(bert_config(arguments.model.build_config(data.vocab_size, data.sequence_length)))
    tokenizer = AutoTokenizer.from_pretrained(data.tokenizer_directory)
    print(f"BERT, {model.num_parameters() / 1e6:.1f} million parameters", flush=True)
    options = TrainingArguments(
        output_dir=str(output / "trainer"),
        learning_rate=arguments.bert_lr,
        per_device_train_batch_size=arguments.bert_batch_size,
        seed=arguments.seed,
        max_steps=10**9,  # the clock ends the training
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    TimedTrainer(
        Clock(arguments, data, 3600 * arguments.train.budget_hours),
        model=model,
        args=options,
        train_dataset=Sequences(data.train),
        data_collator=DataCollatorForLanguageModeling(tokenizer),
    ).train()
    model.save_pretrained(output / FINAL)
    tokenizer.save_pretrained(output / FINAL)


if __name__ == "__main__":
    try:
        main(parse_arguments(BertArguments, sys.argv[1:], "pretrain_bert.py", "Pretrains transformers' BERT."))
    except UserError as error:
        sys.exit(f"error: {error}")
