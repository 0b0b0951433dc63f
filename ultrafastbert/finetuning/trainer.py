"""Fine-tuning of one model on one task with one seed.

Notable:
- a run is a function of the recipe, the model, the examples and the seed, and keeps no other state;
- the development set is used once, with the final weights; early stopping uses held-out training examples;
- a loss that is not finite ends a run: a model that diverged has no score.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_cosine_schedule_with_warmup,
)

from ultrafastbert.finetuning.arguments import Recipe
from ultrafastbert.finetuning.data.encoding import EncodedSplit, evaluation_batches, training_batches
from ultrafastbert.finetuning.data.tasks import Split, Task, TaskData
from ultrafastbert.finetuning.metrics import compute_metric
from ultrafastbert.finetuning.schema import Evaluation, Outcome
from ultrafastbert.runs.backend import use_fastest_backends
from ultrafastbert.runs.optimizer import build_optimizer
from ultrafastbert.runs.precision import uses_bf16
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.progress import progress_bar

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
"""The names of dropout probabilities in the configurations of transformers' models."""


class Diverged(RuntimeError):
    """The loss or the output is not finite."""


@dataclass
class EncodedTask:
    """The examples of a task as token ids; evaluations and tests are by the titles of their splits."""

    data: TaskData
    train: EncodedSplit
    evaluations: dict[str, EncodedSplit]
    tests: dict[str, EncodedSplit]

    @property
    def task(self) -> Task:
        """The task."""
        return self.data.task

    @property
    def truncated(self) -> dict[str, int]:
        """Number of truncated examples by the name of the split, without zeros."""
        splits = (self.train, *self.evaluations.values(), *self.tests.values())
        named = zip(self.data.splits, splits, strict=True)
        return {name: split.truncated for name, split in named if split.truncated}


def encode_task(data: TaskData, tokenizer: PreTrainedTokenizerBase, max_length: int) -> EncodedTask:
    """Encodes all examples of a task."""

    def encode(splits: list[Split]) -> dict[str, EncodedSplit]:
        return {split.title: EncodedSplit(split, tokenizer, max_length) for split in splits}

    train = EncodedSplit(data.train, tokenizer, max_length)
    return EncodedTask(data, train, encode(data.evaluations), encode(data.tests))


def load_tokenizer(name: str, max_length: int) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a model, and checks that the model takes `max_length` tokens.

    Raises:
        UserError: there is no tokenizer or model, the tokenizer cannot pad, or the model takes fewer tokens.
    """
    try:
        tokenizer, config = AutoTokenizer.from_pretrained(name), AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model {name}: cannot load a model with a tokenizer from there: {error}") from error
    if tokenizer.pad_token_id is None:
        raise UserError(f"model {name}: its tokenizer has no padding token; it should have one")
    limit = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or math.inf)
    if max_length > limit:
        raise UserError(f"max_length is {max_length}; it should be at most {limit}, the positions of {name}")
    return tokenizer


def load_model(name: str, task: Task, recipe: Recipe, seed: int) -> tuple[PreTrainedModel, list[str]]:
    """Loads a model with a head for the task.

    Args:
        name: directory or name on the Hub.
        task: decides the outputs of the head.
        recipe: decides dropout, and whether all weights are random.
        seed: decides the random weights.

    Returns:
        The model in float32, and the names of the weights that are random.

    Raises:
        UserError: the model cannot be loaded, or weights of its encoder are missing.
    """
    try:
        config = _build_config(name, task, recipe)
        set_seed(seed)
        if recipe.random_init:
            return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32), ["all weights"]
        options = {"ignore_mismatched_sizes": True, "output_loading_info": True}  # mismatched: another task's head
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            name, config=config, dtype=torch.float32, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"model {name} cannot be loaded for sequence classification: {error}") from error
    new = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
    encoder = f"{model.base_model_prefix}."
    missing = [key for key in new if key.startswith(encoder) and "pooler" not in key]
    if missing:
        raise UserError(
            f"model {name}: its checkpoint lacks {len(missing)} weights of the encoder ({missing[0]}, ...);"
            " it should be a complete pretrained model"
        )
    return model, new


def _build_config(name: str, task: Task, recipe: Recipe) -> PreTrainedConfig:
    names = dict(enumerate(task.labels or ("score",)))
    indices = {label: index for index, label in names.items()}
    config = AutoConfig.from_pretrained(name, num_labels=len(names), id2label=names, label2id=indices)
    config.problem_type = "regression" if task.is_regression else "single_label_classification"
    if recipe.pooling is not None:
        if not hasattr(config, "classifier_pooling"):
            raise ValueError(
                f"pooling is {recipe.pooling}; it should be null, because the configuration ({config.model_type}) has"
                " no classifier_pooling"
            )
        config.classifier_pooling = recipe.pooling
    if recipe.dropout is not None:
        for attribute in DROPOUTS:
            if hasattr(config, attribute):
                setattr(config, attribute, recipe.dropout)
    return config


def finetune(
    model: PreTrainedModel,
    encoded: EncodedTask,
    recipe: Recipe,
    lr: float,
    seed: int,
    device: torch.device,
    check: Callable[[], None],
    held_out_only: bool = False,
) -> Outcome:
    """Trains `model` on the task, evaluates it, and predicts the test sets.

    Args:
        model: from `load_model` with the same seed.
        encoded: the examples.
        recipe: how the model is trained.
        lr: the peak of the learning rate, instead of the recipe's.
        seed: of the order of examples, dropout, and which examples are held out.
        device: where the model is trained.
        check: called before every step; an exception that it raises ends the run.
        held_out_only: a trial for `lr_sweep`: hold out training examples, and evaluate only on these.

    Raises:
        Diverged: the loss or the output is not finite.
        UserError: there are too few training examples to hold some out.
    """
    start = time.monotonic()
    trainer = _Trainer(model, encoded, recipe, lr, seed, device, check)
    outcome = trainer.train(hold_out=held_out_only or recipe.early_stopping is not None)
    if not held_out_only:
        outcome["evaluations"] = {title: trainer.evaluate(split) for title, split in encoded.evaluations.items()}
        outcome["predictions"] = {title: trainer.predict(split) for title, split in encoded.tests.items()}
    outcome["seconds"] = time.monotonic() - start
    return outcome


@torch.no_grad()
def compute_logits(
    model: PreTrainedModel,
    split: EncodedSplit,
    device: torch.device,
    autocast: AbstractContextManager,
    indices: np.ndarray | None = None,
    check: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """The output of a model, float32 `(examples, outputs)`, for all examples of a split or for those at `indices`.

    The model is moved to `device` and is in evaluation mode afterwards; `check` is called before each batch. Raises
    `Diverged` if the output is not finite.
    """
    indices = np.arange(len(split)) if indices is None else indices
    model.to(device)  # pyright: ignore[reportArgumentType]
    model.eval()
    outputs: Any = model.config.num_labels
    logits = np.empty((len(indices), outputs), dtype=np.float32)
    for places in evaluation_batches(split.lengths[indices], EVALUATION_BATCH):
        check()
        batch = split.batch(indices[places])
        inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
        with autocast:
            logits[places] = model(**inputs).logits.float().cpu().numpy()
    if not np.isfinite(logits).all():
        raise Diverged("the model's output is not finite")
    return logits


@dataclass
class _Trainer:
    """Trains and evaluates the model of one run; attributes as in `finetune`."""

    model: PreTrainedModel
    encoded: EncodedTask
    recipe: Recipe
    lr: float
    seed: int
    device: torch.device
    check: Callable[[], None]

    def __post_init__(self):
        self.task, self.generator = self.encoded.task, np.random.default_rng(self.seed)
        enabled = uses_bf16(self.recipe.precision, self.device)
        self.autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)
        self.model.to(self.device)  # pyright: ignore[reportArgumentType]
        tokens = self.recipe.batch_size * self.recipe.max_length
        use_fastest_backends(self.model, tokens, torch.bfloat16 if enabled else torch.float32)

    def train(self, hold_out: bool) -> Outcome:
        """Trains all epochs, or until early stopping."""
        recipe, train = self.recipe, self.encoded.train
        indices, held_out = np.arange(len(train)), np.arange(0)
        if hold_out:
            indices, held_out = _hold_out(indices, recipe.holdout, self.generator)
        lengths = train.lengths[indices]
        epochs = [training_batches(lengths, recipe.batch_size, self.generator) for _ in range(recipe.epochs)]
        steps = sum(map(len, epochs))
        optimizer = build_optimizer(self.model, self.lr, recipe.betas, recipe.eps, recipe.weight_decay)
        schedule = get_cosine_schedule_with_warmup(optimizer, round(recipe.warmup * steps), steps)
        set_seed(self.seed)
        name, losses, best = f"{self.task.name}, seed {self.seed}", [], _Best()
        with progress_bar(steps, name, "step", leave=False) as bar:
            for batches in epochs:
                losses.append(self._epoch([indices[batch] for batch in batches], schedule, bar.update))
                bar.set_description_str(f"{name}, loss {losses[-1]:.4f}")
                if recipe.early_stopping is not None:
                    best.update(self._score(train, held_out), self.model)
                    if best.epochs_since == recipe.early_stopping:
                        break
        outcome: Outcome = {"epochs": len(losses), "steps": schedule.last_epoch, "train_loss": losses}
        if recipe.early_stopping is not None:
            self.model.load_state_dict(best.weights)
            outcome["held_out"] = best.score
        elif hold_out:
            outcome["held_out"] = self._score(train, held_out)
        return outcome

    def _epoch(self, batches: list[np.ndarray], schedule: LRScheduler, advance: Callable[[], object]) -> float:
        """Trains one epoch, and calls `advance` after every step; returns the mean loss."""
        self.model.train()
        total, count = torch.zeros((), device=self.device), 0
        for indices in batches:
            self.check()
            batch = {name: value.to(self.device) for name, value in self.encoded.train.batch(indices).items()}
            with self.autocast:
                loss = self.model(**batch).loss
            loss.backward()
            if self.recipe.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
            schedule.optimizer.step()
            schedule.step()
            schedule.optimizer.zero_grad()
            total += loss.detach() * len(indices)
            count += len(indices)
            advance()
        loss = total.item() / count
        if not math.isfinite(loss):
            raise Diverged(f"the loss of an epoch is {loss}")
        return loss

    def predict(self, split: EncodedSplit, indices: np.ndarray | None = None) -> np.ndarray:
        """The class (int64) or number (float32) of each example, or of those at `indices`."""
        indices = np.arange(len(split)) if indices is None else indices
        logits = compute_logits(self.model, split, self.device, self.autocast, indices, self.check)
        return logits[:, 0] if self.task.is_regression else logits.argmax(axis=1)

    def evaluate(self, split: EncodedSplit, indices: np.ndarray | None = None) -> Evaluation:
        """The task's metric on all labelled examples of a split, or on those at `indices`."""
        assert split.labels is not None
        references = split.labels if indices is None else split.labels[indices]
        num_labels = None if self.task.is_regression else self.task.outputs
        predictions = self.predict(split, indices).tolist()
        values, warnings = compute_metric(self.task.metric, predictions, references.tolist(), num_labels)
        return {"values": values, "warnings": warnings}

    def _score(self, split: EncodedSplit, indices: np.ndarray) -> float:
        return self.evaluate(split, indices)["values"][self.task.primary]


class _Best:
    """The weights of the epoch with the best score so far, for early stopping."""

    def __init__(self) -> None:
        self.score, self.epochs_since = -math.inf, 0
        self.weights: dict[str, torch.Tensor] = {}

    def update(self, score: float, model: nn.Module) -> None:
        self.epochs_since += 1
        if score > self.score:
            self.score, self.epochs_since = score, 0
            self.weights = {name: value.cpu().clone() for name, value in model.state_dict().items()}


def _hold_out(indices: np.ndarray, fraction: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Splits examples at random into those to train on and the fraction to hold out, at least one of each."""
    count = min(max(1, round(fraction * len(indices))), len(indices) - 1)
    if count < 1:
        raise UserError("early_stopping and lr_sweep hold out training examples; there should be at least two")
    indices = generator.permutation(indices)
    return indices[count:], indices[:count]
