"""Fine-tuning of one model on one task with one seed.

Notable:
- a run is a function of the recipe, the model, the rows and the seed; it reads and writes no state besides;
- the development set is looked at once, when the weights are final; early stopping looks at training rows that were
  held out;
- a loss that is not finite ends a run: a model that diverged has no score.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import nn
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_cosine_schedule_with_warmup,
)

from ultrafastbert.finetuning.arguments import Recipe
from ultrafastbert.finetuning.data.encoding import EncodedSplit, evaluation_batches, training_batches
from ultrafastbert.finetuning.data.tasks import Task, TaskData
from ultrafastbert.finetuning.metrics import compute_metric
from ultrafastbert.runs.optimizer import build_optimizer
from ultrafastbert.runs.precision import uses_bf16
from ultrafastbert.utils.errors import UserError

EVALUATION_BATCH = 128
DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "hidden_dropout",
    "attention_dropout",
    "activation_dropout",
    "embedding_dropout",
    "mlp_dropout",
    "dropout",
    "seq_classif_dropout",
    "summary_last_dropout",
    "pooler_dropout",
)
"""The names that models of transformers give their dropouts."""


class Diverged(RuntimeError):
    """The loss or the output is not a finite number any more."""


@dataclass
class EncodedTask:
    """A task whose rows are token ids; evaluations and tests by the titles of their splits."""

    data: TaskData
    train: EncodedSplit
    evaluations: dict[str, EncodedSplit]
    tests: dict[str, EncodedSplit]

    @property
    def task(self) -> Task:
        return self.data.task

    @property
    def truncated(self) -> dict[str, int]:
        """How many rows were cut, by split, where there are any."""
        splits = {"train": self.train} | {f"dev {name}": split for name, split in self.evaluations.items()}
        splits |= {f"test {name}": split for name, split in self.tests.items()}
        return {name: split.truncated for name, split in splits.items() if split.truncated}


def encode_task(data: TaskData, tokenizer: PreTrainedTokenizerBase, max_length: int) -> EncodedTask:
    """The token ids of all rows of a task."""

    def encode(splits):
        return {split.title: EncodedSplit(split, tokenizer, max_length) for split in splits}

    train = EncodedSplit(data.train, tokenizer, max_length)
    return EncodedTask(data, train, encode(data.evaluations), encode(data.tests))


def load_tokenizer(name: str, max_length: int) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, found to suit rows of `max_length` tokens.

    Raises:
        UserError: there is no tokenizer or model, it cannot pad, or the model takes fewer tokens.
    """
    try:
        tokenizer, config = AutoTokenizer.from_pretrained(name), AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model {name}: no model with a tokenizer can be loaded from there: {error}") from error
    if tokenizer.pad_token_id is None:
        raise UserError(f"model {name}: its tokenizer has no padding token; it should have one")
    limit = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or math.inf)
    if max_length > limit:
        raise UserError(f"max_length is {max_length}; it should be at most {limit}, the positions of {name}")
    return tokenizer


def load_model(name: str, task: Task, recipe: Recipe, seed: int) -> tuple[PreTrainedModel, list[str]]:
    """A model with a head for the task, whose new weights are drawn by the seed, and the names of what is new in it.

    Raises:
        UserError: the model cannot be loaded, or weights of its encoder are missing.
    """
    labels = task.labels or ("score",)
    try:
        config = AutoConfig.from_pretrained(
            name,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
        )
        config.problem_type = "regression" if task.is_regression else "single_label_classification"
        if recipe.dropout is not None:
            for attribute in DROPOUTS:
                if hasattr(config, attribute):
                    setattr(config, attribute, recipe.dropout)
        set_seed(seed)
        if recipe.random_init:
            return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32), ["all weights"]
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # the head of another task
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"model {name} cannot be loaded for sequence classification: {error}") from error
    new = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
    encoder = f"{model.base_model_prefix}."
    missing = [key for key in new if key.startswith(encoder) and "pooler" not in key]
    if missing:
        raise UserError(
            f"model {name}: {len(missing)} weights of the encoder are not in its checkpoint ({missing[0]}, ...);"
            " it should be a whole pretrained model"
        )
    return model, new


def finetune(
    model: PreTrainedModel,
    encoded: EncodedTask,
    recipe: Recipe,
    lr: float,
    seed: int,
    device: torch.device,
    check: Callable[[], None],
    held_out_only: bool = False,
) -> dict:
    """Trains `model` on the task, evaluates it, and predicts the tests.

    Args:
        model: with its first weights, from `load_model` with the same seed.
        encoded: the rows.
        recipe: how.
        lr: the peak of the learning rate, in place of the recipe's.
        seed: of the order of rows, dropout and which rows are held out.
        device: where the model is trained.
        check: called between steps; an exception that it raises ends the run.
        held_out_only: a trial for `lr_sweep`: training rows are held out and evaluated, and nothing else is.

    Returns:
        `epochs` (trained), `steps`, `train_loss` (mean of each epoch), `seconds`; `held_out`, the task's primary
        metric on the held-out rows, where there are any; and without `held_out_only` `evaluations`, by split the
        metric's `values` and `warnings`, and `predictions`, by test split a class or a number a row, float32 or
        int64 (rows,).

    Raises:
        Diverged: the loss is not finite.
    """
    start, task = time.monotonic(), encoded.task
    model.to(device)
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(recipe.precision, device))
    trainer = _Trainer(model, encoded, recipe, lr, seed, device, autocast, check)
    result = trainer.run(hold_out=held_out_only or recipe.early_stopping is not None)

    def predict(split: EncodedSplit) -> np.ndarray:
        return _predict(model, split, range(len(split)), task, device, autocast, check)

    if not held_out_only:
        result["evaluations"] = {}
        for title, split in encoded.evaluations.items():
            values, warnings = _score(task, predict(split), split.labels.numpy())
            result["evaluations"][title] = {"values": values, "warnings": warnings}
        result["predictions"] = {title: predict(split) for title, split in encoded.tests.items()}
    return result | {"seconds": time.monotonic() - start}


class _Trainer:
    """The epochs of one run."""

    def __init__(self, model, encoded, recipe, lr, seed, device, autocast, check):
        self.model, self.train, self.task = model, encoded.train, encoded.task
        self.recipe, self.lr, self.seed, self.check = recipe, lr, seed, check
        self.device, self.autocast = device, autocast
        self.generator = np.random.default_rng(seed)

    def run(self, hold_out: bool) -> dict:
        rows, held_out = np.arange(len(self.train)), None
        if hold_out:
            rows, held_out = _hold_out(rows, self.recipe.holdout, self.generator)
        recipe, best, best_weights, losses = self.recipe, -math.inf, None, []
        lengths = self.train.lengths[rows]
        epochs = [training_batches(lengths, recipe.batch_size, self.generator) for _ in range(recipe.epochs)]
        steps = sum(map(len, epochs))
        optimizer = build_optimizer(self.model, self.lr, recipe.betas, recipe.eps, recipe.weight_decay)
        schedule = get_cosine_schedule_with_warmup(optimizer, round(recipe.warmup * steps), steps)
        set_seed(self.seed)
        name = f"{self.task.name}, seed {self.seed}"
        with tqdm(total=steps, desc=name, leave=False, disable=None) as bar:
            for batches in epochs:
                losses.append(self._epoch([rows[batch] for batch in batches], optimizer, schedule, bar))
                if bar.disable:  # no terminal: a line in a log file now and then
                    print(f"{name}: epoch {len(losses)} of {recipe.epochs}, loss {losses[-1]:.4f}", flush=True)
                if recipe.early_stopping is None:
                    continue
                score = self._score_rows(held_out)
                if score > best:
                    best, best_epoch = score, len(losses)
                    best_weights = {name: value.cpu().clone() for name, value in self.model.state_dict().items()}
                elif len(losses) - best_epoch >= recipe.early_stopping:
                    break
        if best_weights is not None:
            self.model.load_state_dict(best_weights)
        elif held_out is not None:
            best = self._score_rows(held_out)
        result = {"epochs": len(losses), "steps": schedule.last_epoch, "train_loss": losses}
        return result if held_out is None else result | {"held_out": best}

    def _epoch(self, batches, optimizer, schedule, bar) -> float:
        """One pass over the rows; its mean loss."""
        self.model.train()
        total, count = torch.zeros((), device=self.device), 0
        for rows in batches:
            self.check()
            batch = {name: value.to(self.device) for name, value in self.train.batch(rows).items()}
            with self.autocast:
                loss = self.model(**batch).loss
            loss.backward()
            if self.recipe.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.detach() * len(rows)
            count += len(rows)
            bar.update()
        loss = total.item() / count
        if not math.isfinite(loss):
            raise Diverged(f"the loss of an epoch is {loss}")
        return loss

    def _score_rows(self, rows: np.ndarray) -> float:
        """The primary metric on some of the training rows."""
        predictions = _predict(self.model, self.train, rows, self.task, self.device, self.autocast, self.check)
        return _score(self.task, predictions, self.train.labels[rows].numpy())[0][self.task.primary]


def _hold_out(rows: np.ndarray, share: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Splits rows at random into those to train on and the share that is held out, at least one of each."""
    count = min(max(1, round(share * len(rows))), len(rows) - 1)
    if count < 1:
        raise UserError(f"{len(rows)} training row is too few to hold any out (early_stopping, lr_sweep)")
    rows = generator.permutation(rows)
    return rows[count:], rows[:count]


@torch.no_grad()
def _predict(model, split: EncodedSplit, rows, task: Task, device, autocast, check) -> np.ndarray:
    """The class (int64) or number (float32) of each of these rows of a split, in their order."""
    model.eval()
    rows = np.asarray(rows)
    logits = np.empty((len(rows), 1 if task.is_regression else len(task.labels)), dtype=np.float32)
    for places in evaluation_batches(split.lengths[rows], EVALUATION_BATCH):
        check()
        batch = {name: value.to(device) for name, value in split.batch(rows[places]).items() if name != "labels"}
        with autocast:
            logits[places] = model(**batch).logits.float().cpu().numpy()
    if not np.isfinite(logits).all():
        raise Diverged("the model's output is not finite")
    return logits[:, 0] if task.is_regression else logits.argmax(axis=1)


def _score(task: Task, predictions: np.ndarray, references: np.ndarray) -> tuple[dict[str, float], list[str]]:
    num_labels = None if task.is_regression else len(task.labels)
    return compute_metric(task.metric, predictions.tolist(), references.tolist(), num_labels=num_labels)
