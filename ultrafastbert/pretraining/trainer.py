"""Masked-language-model pretraining: the training loop of the cramming recipe (arXiv 2212.14034), on accelerate.

Notable:
- Data order, masks, learning rate and batch size are functions of the seed and of what has been spent (`Progress`), so
  a checkpoint with these few numbers resumes exactly where the run stopped.
- Signals are handled between two micro-batches: the current step is discarded, and repeated when the run resumes.
- A step whose loss or gradient is not finite is skipped; it never changes the weights.
- On a GPU, the loss of a step is read while the next step runs, so the GPU never waits for the host.
"""

import contextlib
import logging
import math
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from huggingface_hub.errors import StrictDataclassError
from transformers.utils.logging import disable_progress_bar

import ultrafastbert
from ultrafastbert.configuration_ultrafastbert import UltraFastBertConfig
from ultrafastbert.modeling_ultrafastbert import UltraFastBertForMaskedLM
from ultrafastbert.pretraining.arguments import PretrainArguments
from ultrafastbert.pretraining.checkpointing import Checkpointer, read_progress, step_of_final
from ultrafastbert.pretraining.data.batches import MaskedBatches
from ultrafastbert.pretraining.data.packed import PackedData
from ultrafastbert.pretraining.data.prepare import prepare
from ultrafastbert.pretraining.evaluation import Evaluation, evaluate
from ultrafastbert.pretraining.growing import grow_from_batches
from ultrafastbert.pretraining.in_flight import StepsInFlight
from ultrafastbert.pretraining.reporting import PretrainingReporter
from ultrafastbert.pretraining.schedule import Progress, mask_probability, micro_batches, triangle
from ultrafastbert.pretraining.step import TrainingStep
from ultrafastbert.runs import backend
from ultrafastbert.runs.checkpoints import CheckpointError, find_checkpoint
from ultrafastbert.runs.directory import (
    CHECKPOINTS,
    FINAL,
    STARTS,
    check_disk,
    find_start,
    move_aside,
    open_run_directory,
    set_aside,
)
from ultrafastbert.runs.environment import environment
from ultrafastbert.runs.interrupts import Interrupt
from ultrafastbert.runs.precision import uses_bf16
from ultrafastbert.runs.starts import record_start
from ultrafastbert.utils.errors import Interrupted, UserError
from ultrafastbert.utils.hardware import memory_size


def pretrain(arguments: PretrainArguments) -> Path:
    """Pretrains a model until its budget is spent, or resumes a run that was stopped.

    Returns:
        `output_dir/final`, which `AutoModelForMaskedLM.from_pretrained` and `AutoTokenizer.from_pretrained` load.

    Raises:
        UserError: data, output directory, checkpoint or settings that cannot be used, or a loss that is not finite in
            too many steps in a row; the message says what to do.
        Interrupted: by SIGINT, SIGTERM or SIGHUP, after a checkpoint has been written.
    """
    # accelerate warns that the tied decoder is saved once, transformers shows a bar for a second's work
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    disable_progress_bar()
    accelerator = _build_accelerator(arguments)
    output, start = Path(arguments.output_dir), [None]
    with contextlib.ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(open_run_directory(output))
            start = [find_start(output, arguments.resume)]
            prepare(arguments.data)
        checkpoint = broadcast_object_list(start)[0]  # the other processes wait here until the data is prepared
        data = prepare(arguments.data, progress=False)

        progress = Progress()
        if checkpoint is not None:
            progress = read_progress(checkpoint, arguments, data, accelerator)
            if progress.fraction_of_budget(arguments.train) == 1 and step_of_final(output) == progress.step:
                final = output / FINAL
                accelerator.print(f"{final} exists and the budget is spent; raise the budget to train further")
                return final
        try:
            config = arguments.model.build_config(data.vocab_size, data.sequence_length)
        except StrictDataclassError as error:
            raise UserError(f"model: {error}") from error
        if accelerator.is_main_process:  # the last check before files are moved and memory is allocated
            try:
                with torch.device("meta"):
                    parameters = UltraFastBertForMaskedLM(config).num_parameters()
            except ValueError as error:
                raise UserError(f"model: {error}") from error
            _check_training_memory(parameters, accelerator.device)
            check_disk(output, parameters, arguments.train.keep_checkpoints)
            move_aside(output, checkpoint)
            if checkpoint is not None and (output / FINAL).exists() and step_of_final(output) is None:
                accelerator.print(f"{output / FINAL} is damaged, or its files were changed")
                set_aside(output, [output / FINAL])
        return Trainer(arguments, accelerator, data, config, checkpoint, progress).run()


class Trainer:
    """The training loop and its parts, at the `progress` of the complete checkpoint that it resumes from, if any."""

    def __init__(
        self,
        arguments: PretrainArguments,
        accelerator: Accelerator,
        data: PackedData,
        config: UltraFastBertConfig,
        checkpoint: Path | None,
        progress: Progress,
    ):
        self.arguments, self.train, self.accelerator, self.progress = arguments, arguments.train, accelerator, progress
        self.sequence_length = data.sequence_length
        set_seed(arguments.seed)
        model = UltraFastBertForMaskedLM(config).to(accelerator.device)
        progress.in_bf16 = self._chooses_bf16(config.hidden_size)
        measured = self._choose_backends(model)
        self.step = TrainingStep(model, self.train, accelerator, progress.in_bf16)
        self.batches = MaskedBatches(arguments, data, accelerator.device)
        self.in_flight = StepsInFlight(max_unread=1 if accelerator.device.type == "cuda" else 0)
        self.checkpointer = Checkpointer(arguments, data, model, accelerator)
        if checkpoint is not None:
            self.checkpointer.load(checkpoint, progress.step)
        self.reporter = PretrainingReporter(arguments, data, self.step, progress, measured)

    def run(self) -> Path:
        """Trains until the budget is spent; see `pretrain`."""
        self.checkpointer.write_config()
        self._record_start()
        self.reporter.start()
        self.clock_start = time.monotonic() - self.progress.seconds
        evaluation = None
        try:
            with Interrupt() as interrupt:
                while (fraction := self._fraction_of_budget()) < 1:
                    if fraction >= self.train.grow_at and not self.progress.has_grown:
                        self._grow(fraction)
                    if not self._launch_step(fraction, interrupt):
                        self._stop(interrupt)
                    evaluation = self._evaluate_and_save()
                self._read_results(everything=True)
                self.reporter.write_line()
                evaluation = evaluation or self._evaluate()
                self._refuse_many_skipped()
                try:
                    self._save()
                finally:  # on a disk too full for the checkpoint there may be room for the model
                    final = self.checkpointer.save_final(self.progress, evaluation)
            self.reporter.summarize_run(final, evaluation)
        finally:
            self.reporter.close()
            self.step.release()
            self.accelerator.end_training()
        return final

    def _record_start(self) -> None:
        """Writes where the run starts or resumes, and on what, for people who look at it later."""
        if self.accelerator.is_main_process:
            start = {"step": self.progress.step, "processes": self.accelerator.num_processes}
            start |= {"precision": "bf16" if self.step.in_bf16 else "fp32", "backends": self.progress.backends}
            start |= {"ultrafastbert": ultrafastbert.__version__}
            start |= environment(self.accelerator.device, "transformers")
            record_start(Path(self.arguments.output_dir) / STARTS, start)

    def _grow(self, fraction: float) -> None:
        """Makes the decisions of trees with leaves."""
        masked = mask_probability(fraction, self.train)
        if count := len(grow_from_batches(self.step, self.batches, self.progress.sequences, masked)):
            self.reporter.say(f"step {self.progress.step} ({fraction:.0%}): the trees of {count} layers have grown")
        self.progress.has_grown = True

    def _launch_step(self, fraction: float, interrupt: Interrupt) -> bool:
        """Queues an optimiser step on the device; False if a signal arrived, and then nothing has changed."""
        start = time.monotonic()
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        count, size = micro_batches(fraction, self.train, processes), self.train.micro_batch_size
        lr, masked = self.train.lr * triangle(fraction, self.train.lr_peak), mask_probability(fraction, self.train)

        loss = torch.zeros((), device=self.accelerator.device)
        for index in range(count):
            if self._is_interrupted(interrupt, first=index == 0):
                self.step.discard()
                return False
            place = self.progress.sequences + index * processes * size
            batch = self.batches.read(place, masked, rank, processes)
            loss += self.step.accumulate(batch, count, last=index == count - 1)
        values = self.step.update(loss, lr)

        sequences = count * processes * size
        self.progress.step += 1
        self.progress.sequences += sequences
        self.progress.tokens += sequences * self.sequence_length
        self._spend_time()
        self.in_flight.add(self.progress.position(self.train), lr, sequences, start, values)
        return True

    def _evaluate_and_save(self) -> Evaluation | None:
        """Reports, evaluates and saves at the intervals of the options; the evaluation if there was one."""
        step = self.progress.step
        evaluates, saves = step % self.train.eval_every == 0, step % self.train.checkpoint_every == 0
        self._read_results(everything=evaluates or saves)
        evaluation = self._evaluate() if evaluates else None
        if saves and self.progress.skipped_in_a_row:
            self.reporter.say(f"no checkpoint at step {step}: the loss is not finite; earlier checkpoints are kept")
        elif saves:
            try:
                self._save()
            except CheckpointError as error:  # the run is worth more than this checkpoint, and the next may succeed
                self.reporter.say(f"warning: {error}; training continues, earlier checkpoints are kept")
        self._spend_time()
        return evaluation

    def _read_results(self, everything: bool) -> None:
        """Counts and reports the steps whose results have arrived; waits for all of them if asked for everything."""
        progress = self.progress
        for result in self.in_flight.read(everything):
            progress.skipped += not result.is_finite
            progress.skipped_in_a_row = 0 if result.is_finite else progress.skipped_in_a_row + 1
            self.reporter.report_step(result)
            if progress.skipped_in_a_row >= self.train.max_skipped_steps:
                self._diverged(
                    f"the loss was not finite in {progress.skipped_in_a_row} steps in a row (train.max_skipped_steps),"
                    f" up to step {result.position['step']}"
                )

    def _refuse_many_skipped(self) -> None:
        skipped, steps, most = self.progress.skipped, self.progress.step, self.train.max_skipped_fraction
        if skipped > most * steps:
            if not self.progress.skipped_in_a_row:
                self._save()
            self._diverged(
                f"{skipped} of {steps} steps were skipped because their loss was not finite, more than {most:.0%}"
                " (train.max_skipped_fraction)"
            )

    def _diverged(self, problem: str) -> NoReturn:
        good = find_checkpoint(Path(self.arguments.output_dir) / CHECKPOINTS)
        raise UserError(
            f"{problem}; the last good checkpoint: {good or 'none was written'}. A lower train.lr or a smaller"
            " train.max_grad_norm may help; changed options need another output_dir or --resume never."
        )

    def _evaluate(self) -> Evaluation:
        """The validation, which no process has reported before; a loss that is not finite ends the run."""
        sequences, masker = self.batches.validation, self.batches.validation_masker
        evaluation = evaluate(self.step, sequences, masker, self.train.micro_batch_size)
        self.reporter.report_evaluation(evaluation)
        if not math.isfinite(evaluation.loss):
            self._diverged(f"the validation loss is {evaluation.loss} at step {self.progress.step}")
        return evaluation

    def _save(self) -> Path:
        self._spend_time()
        return self.checkpointer.save(self.progress)

    def _stop(self, interrupt: Interrupt) -> NoReturn:
        assert interrupt.signal is not None
        self._read_results(everything=True)
        checkpoint = self._save()
        command = "the same command" if self.arguments.resume == "auto" else "the same command with --resume auto"
        spent = f"{self.progress.fraction_of_budget(self.train):.0%} of the budget"
        stopped = f"stopped by signal {interrupt.signal} after step {self.progress.step} ({spent})"
        raise Interrupted(f"{stopped}; saved in {checkpoint}; {command} resumes from there", interrupt.signal)

    def _chooses_bf16(self, width: int) -> bool:
        """Whether passes run in bfloat16: the same in all processes, and in a resumed run as before."""
        if self.train.precision == "auto" and self.progress.in_bf16 is not None:
            return self.progress.in_bf16
        return broadcast_object_list([uses_bf16(self.train.precision, self.accelerator.device, width)])[0]

    def _choose_backends(self, model: UltraFastBertForMaskedLM) -> backend.Measured:
        """Gives the trees the backends of the run, on a GPU the fastest ones; what was measured for that.

        They are the same in all processes, and in a resumed run as before. On a CPU, and with `UFB_FFF_BACKEND`, every
        call chooses by `ops.fff`'s rule.
        """
        measured: backend.Measured = {}
        if not backend.is_measured(self.accelerator.device):
            return measured
        if self.progress.backends is None:
            dtype = torch.bfloat16 if self.progress.in_bf16 else torch.float32
            measured = backend.measure_backends(model, self.train.micro_batch_size * self.sequence_length, dtype)
            measured = broadcast_object_list([measured])[0]
            self.progress.backends = backend.fastest(measured)
        backend.use_backends(model, self.progress.backends)
        return measured

    def _spend_time(self) -> None:
        self.progress.seconds = time.monotonic() - self.clock_start

    def _fraction_of_budget(self) -> float:
        """The fraction of the budget that is spent, the same in all processes."""
        fraction = self.progress.fraction_of_budget(self.train)
        return fraction if self.accelerator.num_processes == 1 else broadcast_object_list([fraction])[0]

    def _is_interrupted(self, interrupt: Interrupt, first: bool) -> bool:
        """Whether a signal arrived in any process; several processes agree once per step, at the `first` call."""
        if self.accelerator.num_processes == 1:
            return interrupt.signal is not None
        if not first:
            return False
        signal = torch.tensor(interrupt.signal or 0, device=self.accelerator.device)
        signals: Any = self.accelerator.gather(signal)  # a tensor
        if agreed := int(signals.max()):
            interrupt.signal = agreed
        return agreed > 0  # not of one that arrived just now: the others learn of it in the next step


def _check_training_memory(parameters: int, device: torch.device) -> None:
    """Raises a UserError if weights, gradients and the optimiser's two averages, in float32, do not fit."""
    on_gpu = device.type == "cuda"
    available = torch.cuda.get_device_properties(device).total_memory if on_gpu else memory_size()
    if (needed := 16 * parameters) > available:
        raise UserError(
            f"training {parameters / 1e6:,.0f} million parameters needs at least {needed / 1e9:,.1f} GB; {device} has"
            f" {available / 1e9:,.1f} GB of memory. model.hidden_size, model.num_hidden_layers and"
            " model.fff decide the size."
        )


def _build_accelerator(arguments: PretrainArguments) -> Accelerator:
    """An accelerator with the trackers, and without mixed precision, which is `TrainingStep`'s."""
    trackers = arguments.train.trackers
    try:
        accelerator = Accelerator(mixed_precision="no", log_with=[*trackers] or None, project_dir=arguments.output_dir)
    except ValueError as error:
        raise UserError(f"train.trackers is {trackers}: {error}") from error
    missing = len(trackers) - len(accelerator.log_with)
    if missing:
        remedy = "are their packages installed?"
        raise UserError(f"train.trackers is {trackers}: {missing} of them cannot be used; {remedy}")
    return accelerator
