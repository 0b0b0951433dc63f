"""Distillation: fits the student's layers, then trains it as a whole against its teacher.

As in pretraining, batches and learning rate are functions of the seed and of what has been spent (`Progress`), so that
a run resumes from a checkpoint where it stopped; the first one is written when all layers are fitted. A step whose
loss or gradient is not finite is skipped.
"""

import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers import __version__ as transformers_version
from transformers.utils.logging import disable_progress_bar

from ultrafastbert.conversion.bert import load_encoder
from ultrafastbert.conversion.encoder import load_tokenizer, save_companions
from ultrafastbert.conversion.files import find_model
from ultrafastbert.distillation.arguments import DistillArguments, check_teacher_sizes, sizes_by_layer
from ultrafastbert.distillation.objective import Objective, divergence, find_pooling, unexplained
from ultrafastbert.distillation.student import build_student, fit_student
from ultrafastbert.distillation.texts import Sequences, TextBatch, read_sequences
from ultrafastbert.layers.hard import HardFFF
from ultrafastbert.layers.usage import LeafCounter
from ultrafastbert.modeling_ultrafastbert import UltraFastBertPreTrainedModel
from ultrafastbert.pretraining.schedule import triangle
from ultrafastbert.pretraining.step import BALANCE_RATE
from ultrafastbert.runs.checkpoints import (
    CheckpointError,
    read_checkpoint,
    read_record,
    save_checkpoint,
    write_directory,
    write_record,
)
from ultrafastbert.runs.directory import (
    CHECKPOINTS,
    CONFIG,
    FINAL,
    METRICS,
    check_disk,
    find_start,
    move_aside,
    open_run_directory,
    run_of,
)
from ultrafastbert.runs.interrupts import Interrupt
from ultrafastbert.runs.optimizer import build_optimizer
from ultrafastbert.runs.precision import uses_bf16
from ultrafastbert.runs.reporter import Reporter
from ultrafastbert.runs.settings import changed_settings, refuse_changes
from ultrafastbert.utils.errors import Interrupted, UserError
from ultrafastbert.utils.files import write_atomically
from ultrafastbert.utils.progress import duration

RECORD = "distillation.json"
"""In `FINAL`: the teacher, the budget spent and the results."""
CHANGEABLE = ("budget_hours", "resume", "output_dir")
"""Options outside of `train` with which a run may resume although they changed."""


@dataclass
class Progress:
    """What a run has spent so far.

    Attributes:
        step: optimiser steps of the whole student.
        sequences, tokens: that it has seen.
        seconds: wall-clock time, over all resumed runs.
        skipped: steps skipped because loss or gradient were not finite.
        skipped_in_a_row: the last of them.
        fit_fraction: of the budget, spent on fitting the layers.
        in_bf16: whether passes run in bfloat16.
        unexplained: by layer, the variance that the fit left unexplained; None for a layer that stays.
    """

    step: int = 0
    sequences: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    fit_fraction: float = 0.0
    in_bf16: bool = False
    unexplained: list[float | None] = field(default_factory=list)

    def fraction_of_budget(self, arguments: DistillArguments) -> float:
        """The fraction of the budget that is spent, 0 to 1."""
        hours, steps = arguments.budget_hours, arguments.train.max_steps
        spent = [self.seconds / 3600 / hours] if hours is not None else []
        return min(1.0, max([*spent, *([self.step / steps] if steps is not None else [])]))


@dataclass
class Evaluation:
    """How close a student is to its teacher on held-out texts.

    Attributes:
        hidden_unexplained: the fraction of the variance of the last hidden states that the student misses.
        cosine: the mean cosine between sentence vectors; None if there are none.
        divergence: of the student's logits from the teacher's, in nats; None without a head.
        leaves_used, leaf_entropy: by layer of trees, as in pretraining.
    """

    hidden_unexplained: float
    cosine: float | None
    divergence: float | None
    leaves_used: list[float]
    leaf_entropy: list[float]

    def describe(self) -> str:
        """The results in a line."""
        text = f"hidden states: {self.hidden_unexplained:.3f} of the variance unexplained"
        if self.cosine is not None:
            text += f"; cosine of sentence vectors {self.cosine:.4f}"
        if self.divergence is not None:
            text += f"; divergence of logits {self.divergence:.4f}"
        if self.leaf_entropy:
            text += f"; entropy of leaves {min(self.leaf_entropy):.2f} to {max(self.leaf_entropy):.2f}"
        return text


def distill(arguments: DistillArguments) -> Path:
    """Distils an encoder until the budget is spent, or resumes a run that was stopped.

    Returns:
        `output_dir/final`, which `from_pretrained` loads, with the tokenizer and the files of sentence-transformers.

    Raises:
        UserError: a model, texts, an output directory, a checkpoint or settings that cannot be used, a budget that
            the regression alone spends, or a loss that is not finite in too many steps in a row.
        Interrupted: by SIGINT, SIGTERM or SIGHUP, after a checkpoint has been written.
    """
    disable_progress_bar()
    accelerator, output = Accelerator(mixed_precision="no"), Path(arguments.output_dir)
    if accelerator.num_processes > 1:
        raise UserError("distill runs in one process; it was started in several")
    with open_run_directory(output):
        checkpoint = find_start(output, arguments.resume)
        progress = Progress() if checkpoint is None else read_progress(checkpoint, arguments)
        final = output / FINAL
        record = read_record(final, RECORD)
        if progress.fraction_of_budget(arguments) == 1 and record is not None and record["step"] == progress.step:
            print(f"{final} exists and the budget is spent; raise the budget to train further")
            return final
        source = find_model(arguments.model)
        teacher, tokenizer = load_encoder(source), load_tokenizer(source)
        try:
            check_teacher_sizes(teacher.config.sizes_by_layer)
            sizes = sizes_by_layer(arguments.fff, teacher.config.sizes_by_layer)
        except ValueError as error:
            raise UserError(f"model {arguments.model}: {error}") from error
        pooling = find_pooling(source) if arguments.pooling == "auto" else arguments.pooling
        objective = Objective(teacher, tokenizer, None if pooling == "none" else pooling)
        set_seed(arguments.seed)
        student = build_student(teacher, sizes)
        check_disk(output, student.num_parameters(), arguments.train.keep_checkpoints)
        texts = read_sequences(tokenizer, arguments.data, arguments.train.batch_size, arguments.seed)
        move_aside(output, checkpoint)
        models = (teacher.to(accelerator.device).float().eval(), student.to(accelerator.device).float())
        trainer = Trainer(arguments, accelerator, models, source, tokenizer, objective, texts, checkpoint, progress)
        return trainer.run()


class Trainer:
    """The training loop and its parts, at the `progress` of the checkpoint that it resumes from, if any."""

    def __init__(
        self,
        arguments: DistillArguments,
        accelerator: Accelerator,
        models: tuple[UltraFastBertPreTrainedModel, UltraFastBertPreTrainedModel],
        source: Path,
        tokenizer: PreTrainedTokenizerBase,
        objective: Objective,
        texts: tuple[Sequences, Sequences],
        checkpoint: Path | None,
        progress: Progress,
    ):
        self.arguments, self.train, self.accelerator, self.progress = arguments, arguments.train, accelerator, progress
        self.teacher, self.student = models
        self.source = source
        self.tokenizer, self.objective, (self.texts, self.validation) = tokenizer, objective, texts
        self.output, self.resumes, self.saved_step = Path(arguments.output_dir), checkpoint is not None, None
        train = self.train
        # The teacher's embeddings suit the student, and texts of a short run have few of them.
        self.student.base_model.embeddings.requires_grad_(False)
        optimizer = build_optimizer(self.student, train.lr, (0.9, 0.98), 1e-8, train.weight_decay)
        self.student, self.optimizer = accelerator.prepare(self.student, optimizer)
        if checkpoint is None:
            width = self.student.config.hidden_size
            progress.in_bf16 = uses_bf16(train.precision, accelerator.device, width)
        else:
            try:
                accelerator.load_state(str(checkpoint))
            except Exception as error:  # errors of torch, safetensors and pickle
                raise CheckpointError(f"checkpoint {checkpoint} cannot be loaded: {error}") from error
            self.saved_step = progress.step if run_of(checkpoint) == self.output.resolve() else None
        self.trees = [module for module in self.student.modules() if isinstance(module, HardFFF)]
        self.reporter = Reporter(self.output / METRICS, progress.step, accelerator)
        self.losses: list[float] = []  # since the last line of metrics

    def run(self) -> Path:
        """Fits the layers, unless a checkpoint has them, and trains until the budget is spent."""
        self._write_config()
        self.clock_start = time.monotonic() - self.progress.seconds
        evaluation = None
        try:
            with Interrupt() as interrupt:
                self._describe()
                if not self.resumes:
                    self._fit(interrupt)
                self._set_training()
                for tree in self.trees:
                    tree.leaf_counts = torch.zeros(2**tree.depth, device=self.accelerator.device)
                while self.progress.fraction_of_budget(self.arguments) < 1:
                    if interrupt.signal is not None:
                        self._stop(interrupt)
                    self._step()
                    evaluation = self._evaluate_and_save()
                self._write_line()
                evaluation = evaluation or self._evaluate()
                try:
                    self._save()
                finally:  # on a disk too full for the checkpoint there may be room for the model
                    final = self._save_final(evaluation)
        finally:
            self.reporter.close()
        progress = self.progress
        print(
            f"\n{progress.step} steps, {progress.tokens / 1e6:.1f} million tokens in {duration(progress.seconds)};"
            f" {progress.skipped} steps skipped\n{evaluation.describe()}\nmodel: {final}"
        )
        return final

    def _describe(self) -> None:
        sizes = [str(size) for size in self.student.config.sizes_by_layer]
        before, after = (sum(p.numel() for p in model.parameters()) / 1e6 for model in (self.teacher, self.student))
        said = sizes[0] if len(set(sizes)) == 1 else ", ".join(sizes)
        self.reporter.say(
            f"{type(self.student).__name__} of {len(sizes)} layers, feedforward {said}; {after:.1f} million parameters"
            f" (teacher {before:.1f}); {len(self.texts):,} sequences, {self.texts.lengths.mean():.0f} tokens on"
            f" average; on {self.accelerator.device} in {'bf16' if self.progress.in_bf16 else 'fp32'}"
        )
        if self.resumes:
            fraction = self.progress.fraction_of_budget(self.arguments)
            self.reporter.say(f"resuming at step {self.progress.step}, {fraction:.0%} of the budget spent")

    def _fit(self, interrupt: Interrupt) -> None:
        """Fits the layers and saves the first checkpoint."""

        def report(layer: int, value: float) -> None:
            self.reporter.say(f"layer {layer} fitted: {value:.3f} of the variance of its outputs unexplained")

        found = fit_student(self.teacher, self.student, self.texts, self.arguments.fit, self.output, interrupt, report)
        self._spend_time()
        if found is None:
            assert interrupt.signal is not None
            stopped = f"stopped by signal {interrupt.signal} while layers were fitted"
            raise Interrupted(f"{stopped}; the same command starts again", interrupt.signal)
        self.progress.unexplained = found
        self.progress.fit_fraction = self.progress.fraction_of_budget(self.arguments)
        self._save()
        if self.progress.fit_fraction == 1:
            raise UserError(
                f"budget_hours is {self.arguments.budget_hours}, which fitting the layers has spent"
                f" ({duration(self.progress.seconds)}); raise it to train the student; the fit is kept"
            )
        self.reporter.metrics(self._position() | {"fit_unexplained": [value or 0.0 for value in found]})
        self.reporter.say(f"after the fit: {self._evaluate().describe()}")

    def _set_training(self) -> None:
        """Without dropout, because the teacher's outputs are no noisy labels; trees count their tokens."""
        self.student.eval()
        for tree in self.trees:
            tree.train()

    def _step(self) -> None:
        """Trains on one batch."""
        progress, train = self.progress, self.train
        batch = self.texts.batch(progress.step)
        fraction = progress.fraction_of_budget(self.arguments)
        trained = max(0.0, fraction - progress.fit_fraction) / max(1e-9, 1 - progress.fit_fraction)
        lr = train.lr * triangle(min(1.0, trained), train.lr_peak)
        loss = self._loss(batch, progress.step)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), train.max_grad_norm)
        is_finite = bool(loss.isfinite() and norm.isfinite())
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if is_finite:
            self.optimizer.step()
            self.losses.append(loss.item())
        self.optimizer.zero_grad()
        for tree in self.trees:
            tree.balance(BALANCE_RATE * lr / train.lr if is_finite else 0)
        progress.step += 1
        progress.sequences += len(batch.input_ids)
        progress.tokens += batch.tokens
        self._spend_time()
        self._count_skipped(is_finite)
        if self.losses:
            self.reporter.show_progress(fraction, f"step {progress.step} | loss {np.mean(self.losses):.3f}")
        if progress.step % train.log_every == 0:
            self._write_line(lr)

    def _loss(self, batch: TextBatch, seed: int) -> Tensor:
        device = self.accelerator.device
        inputs = {name: tensor.to(device) for name, tensor in self.objective.prepare(batch, seed).items()}
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.progress.in_bf16):
            with torch.no_grad():
                target = self.objective.run(self.teacher, inputs)
            return self.objective.loss(self.objective.run(self.student, inputs), target)

    def _count_skipped(self, is_finite: bool) -> None:
        progress = self.progress
        progress.skipped += not is_finite
        progress.skipped_in_a_row = 0 if is_finite else progress.skipped_in_a_row + 1
        if progress.skipped_in_a_row >= self.train.max_skipped_steps:
            raise UserError(
                f"the loss was not finite in {progress.skipped_in_a_row} steps in a row (train.max_skipped_steps), up"
                f" to step {progress.step}; checkpoints are in {self.output / CHECKPOINTS}. A lower train.lr may help."
            )

    def _position(self) -> dict[str, Any]:
        fraction = self.progress.fraction_of_budget(self.arguments)
        names = ("step", "tokens", "seconds")
        return {name: getattr(self.progress, name) for name in names} | {"budget_fraction": round(fraction, 6)}

    def _write_line(self, lr: float | None = None) -> None:
        """Writes the metrics of the steps since the last line, if there are any."""
        if self.losses:
            values = {"loss": float(np.mean(self.losses)), "lr": lr, "skipped": self.progress.skipped}
            self.reporter.metrics(self._position() | values)
            self.losses = []

    def _evaluate_and_save(self) -> Evaluation | None:
        step = self.progress.step
        evaluation = self._evaluate() if step % self.train.eval_every == 0 else None
        if evaluation is not None:
            self.reporter.say(f"step {step}: {evaluation.describe()}")
        if step % self.train.checkpoint_every == 0:
            try:
                self._save()
            except CheckpointError as error:  # the run is worth more than this checkpoint, and the next may succeed
                self.reporter.say(f"warning: {error}; training continues, earlier checkpoints are kept")
        self._spend_time()
        return evaluation

    @torch.no_grad()
    def _evaluate(self) -> Evaluation:
        """Compares student and teacher on the held-out texts, and writes a line of metrics."""
        self.student.eval()
        device, hidden, cosines, divergences = self.accelerator.device, [], [], []
        with LeafCounter(self.student) as counter:
            for number in range(self.validation.batches_per_epoch):
                batch = self.validation.batch(number)
                inputs = {name: tensor.to(device) for name, tensor in self.objective.prepare(batch, number).items()}
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.progress.in_bf16):
                    student, teacher = (self.objective.run(model, inputs) for model in (self.student, self.teacher))
                hidden.append(unexplained(student.hidden[-1:], teacher.hidden[-1:]).item())
                if student.vectors is not None and teacher.vectors is not None:
                    cosines.append((student.vectors * teacher.vectors).sum(-1).mean().item())
                if student.logits is not None and teacher.logits is not None and student.logits.numel():
                    divergences.append(divergence(student.logits.float(), teacher.logits.float()).item())
        self._set_training()
        used, entropy = counter.usage() if counter.layers else ([], [])
        evaluation = Evaluation(
            float(np.mean(hidden)),
            float(np.mean(cosines)) if cosines else None,
            float(np.mean(divergences)) if divergences else None,
            used,
            entropy,
        )
        values = {name: value for name, value in asdict(evaluation).items() if value not in (None, [])}
        self.reporter.metrics(self._position() | values)
        return evaluation

    def _save(self) -> Path:
        """Writes a checkpoint, unless that of this step exists."""
        directory, progress = self.output / CHECKPOINTS, self.progress
        if self.saved_step != progress.step:
            self._spend_time()
            content = {"progress": asdict(progress), "arguments": self.arguments.to_dict()}
            save_checkpoint(self.accelerator, directory, progress.step, content, self.train.keep_checkpoints)
            self.saved_step = progress.step
        return directory / f"step-{progress.step}"

    def _save_final(self, evaluation: Evaluation) -> Path:
        """Writes the student with its tokenizer to `final`."""
        final = self.output / FINAL
        record = asdict(self.progress) | asdict(evaluation) | {"teacher": self.arguments.model}

        def write(directory: Path) -> None:
            self.student.save_pretrained(directory)
            save_companions(self.tokenizer, self.source, directory)
            write_record(directory, RECORD, record)

        try:
            write_directory(final, write, self.accelerator)
        except Exception as error:  # a full disk is an OSError or an error of safetensors
            raise UserError(
                f"the student could not be written to {final}: {error}; make room and resume with --resume auto"
                f" from the last checkpoint in {self.output / CHECKPOINTS}"
            ) from error
        return final

    def _stop(self, interrupt: Interrupt) -> NoReturn:
        assert interrupt.signal is not None
        checkpoint = self._save()
        command = "the same command" if self.arguments.resume == "auto" else "the same command with --resume auto"
        stopped = f"stopped by signal {interrupt.signal} after step {self.progress.step}"
        raise Interrupted(f"{stopped}; saved in {checkpoint}; {command} resumes from there", interrupt.signal)

    def _spend_time(self) -> None:
        self.progress.seconds = time.monotonic() - self.clock_start

    def _write_config(self) -> None:
        python = platform.python_version()
        text = f"# torch {torch.__version__}, transformers {transformers_version}, Python {python}\n"
        settings = self.arguments.to_dict() | {"resume": "auto"}  # using the file again resumes the run
        write_atomically(self.output / CONFIG, text + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def read_progress(checkpoint: Path, arguments: DistillArguments) -> Progress:
    """The progress at a checkpoint; prints the options of training that have changed since.

    Raises:
        CheckpointError: the checkpoint is incomplete or damaged.
        UserError: it is of another model, other sizes, other texts or another seed.
    """
    content = read_checkpoint(checkpoint)
    changes = changed_settings(content["arguments"], arguments.to_dict())
    changes = {name: change for name, change in changes.items() if name not in CHANGEABLE}
    fixed = {name: change for name, change in changes.items() if not name.startswith("train.")}
    fixed |= {name: change for name, change in changes.items() if name == "train.batch_size"}
    refuse_changes(f"checkpoint {checkpoint}", fixed, "Choose another output_dir, or resume=never to start again.")
    for name, (old, new) in changes.items():
        print(f"changed since the checkpoint: {name} was {old!r} and is {new!r}")
    return Progress(**content["progress"])
