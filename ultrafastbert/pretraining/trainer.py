"""Masked-language-model pretraining: the cramming recipe (arXiv 2212.14034) as one loop on accelerate.

Notable:
- the data order, the masks, the learning rate and the batch size are functions of the seed and of what has been
  spent so far (`Progress`), so a checkpoint that holds these few numbers goes on exactly where it stopped;
- a signal is honoured between two forward passes: the step under way is given up, and made again on resuming;
- a step whose loss or gradient is not finite is left out; the weights are never those of a bad step;
- on a GPU the host reads a step's loss while the next step runs, so the GPU never waits for it.
"""

import contextlib
import functools
import json
import logging
import platform
import time
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer
from transformers import __version__ as transformers_version
from transformers.utils.logging import disable_progress_bar

from ultrafastbert.configuration_ultrafastbert import UltraFastBertConfig
from ultrafastbert.modeling_ultrafastbert import UltraFastBertForMaskedLM
from ultrafastbert.pretraining.arguments import PretrainArguments
from ultrafastbert.pretraining.curves import plot_runs
from ultrafastbert.pretraining.data.batches import SequenceOrder
from ultrafastbert.pretraining.data.masking import Masker, masks_per_sequence
from ultrafastbert.pretraining.data.packed import PackedData
from ultrafastbert.pretraining.data.prepare import prepare
from ultrafastbert.pretraining.evaluation import Evaluation, evaluate
from ultrafastbert.pretraining.flops import training_flops
from ultrafastbert.pretraining.in_flight import Step, Steps, summarise
from ultrafastbert.pretraining.schedule import Progress, micro_batches, triangle
from ultrafastbert.pretraining.step import masked_loss, prepare_training, to_device, update
from ultrafastbert.runs.checkpoints import (
    CheckpointError,
    find_checkpoint,
    read_checkpoint,
    save_checkpoint,
    write_directory,
)
from ultrafastbert.runs.directory import check_disk, find_start, move_aside, open_run_directory
from ultrafastbert.runs.interrupts import Interrupt
from ultrafastbert.runs.precision import uses_bf16
from ultrafastbert.runs.reporter import Reporter, duration
from ultrafastbert.utils.errors import Interrupted, UserError
from ultrafastbert.utils.files import write_atomically
from ultrafastbert.utils.hardware import utilization
from ultrafastbert.utils.settings import flatten

ORIGIN = "pretraining.json"
"""In `final/`: what was spent on the model, and how it did on the validation rows."""


def pretrain(arguments: PretrainArguments) -> Path:
    """Pretrains a model until its budget is spent, or goes on with a run that was stopped.

    Returns:
        `output_dir/final`, which `AutoModelForMaskedLM.from_pretrained` and `AutoTokenizer.from_pretrained` load.

    Raises:
        UserError: data, output directory, checkpoint or settings that cannot be used, or a loss that stays not
            finite; the message says what to mend.
        Interrupted: SIGINT, SIGTERM or SIGHUP; a checkpoint has been written.
    """
    # accelerate warns that the tied decoder is saved once, transformers shows a bar for a second's work
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    disable_progress_bar()
    accelerator = _build_accelerator(arguments)
    output, start = Path(arguments.output_dir), [None]
    with contextlib.ExitStack() as held:
        if accelerator.is_main_process:
            held.enter_context(open_run_directory(output))
            start = [find_start(output, arguments.resume)]
            prepare(arguments.data)
        checkpoint = broadcast_object_list(start)[0]  # the other processes wait here until there is data
        data = prepare(arguments.data, progress=False)

        progress = Progress()
        if checkpoint is not None:
            content = read_checkpoint(checkpoint)
            _compare_settings(checkpoint, content, arguments, data, talk=accelerator.is_main_process)
            progress = Progress(**content["progress"])
            if progress.share_of_budget(arguments.train) == 1 and _step_of_final(output / "final") == progress.step:
                accelerator.print(f"{output / 'final'} is there and the budget is spent; raise the budget to go on")
                return output / "final"
        config = _build_config(arguments, data)
        if accelerator.is_main_process:  # the last look before files are moved and memory is taken
            check_disk(output, _count_parameters(config), arguments.train.keep_checkpoints)
            move_aside(output, checkpoint)
        return Pretraining(arguments, accelerator, data, config, checkpoint, progress).run()


class Pretraining:
    """One run: what it is made of, and the loop.

    Args:
        arguments: of the run.
        accelerator: with the trackers of the run.
        data: prepared data.
        config: of the model.
        checkpoint: the directory of a complete checkpoint to go on from, or None.
        progress: what had been spent at that checkpoint.
    """

    def __init__(
        self,
        arguments: PretrainArguments,
        accelerator: Accelerator,
        data: PackedData,
        config: UltraFastBertConfig,
        checkpoint: Path | None,
        progress: Progress,
    ):
        self.arguments, self.train, self.accelerator, self.data = arguments, arguments.train, accelerator, data
        self.output = Path(arguments.output_dir)
        device = accelerator.device

        set_seed(arguments.seed)
        self.model = UltraFastBertForMaskedLM(config).to(device)
        self.wrapped_model, self.optimizer, self.autocast = prepare_training(self.model, self.train, accelerator)

        masker = functools.partial(
            Masker,
            probability=self.train.mask_probability,
            vocab_size=data.vocab_size,
            special_token_ids=data.special_token_ids,
            device=device,
        )
        self.masker, self.validation_masker = masker(seed=arguments.seed), masker(seed=arguments.seed + 1)
        # Rows that were put into an order on purpose are trained on in that order.
        shuffle = data.manifest["request"]["options"]["order"] == "source"
        self.rows = SequenceOrder(data.train, arguments.seed, shuffle)
        self.validation_rows = SequenceOrder(data.validation, seed=0).read(
            0, min(self.train.eval_sequences, len(data.validation))
        )

        self.steps = Steps(at_most=1 if device.type == "cuda" else 0)
        self.steps_of_line: list[Step] = []  # those since the last line of metrics
        self.in_bf16 = uses_bf16(self.train.precision, device)

        self.progress, self.saved_step = progress, None
        if checkpoint is not None:
            self._load(checkpoint)
        self.reporter = Reporter(self.output / "metrics.jsonl", self.progress.step, accelerator)

    # the loop

    def run(self) -> Path:
        """Trains until the budget is spent; see `pretrain`."""
        final = self.output / "final"
        self._write_config()
        settings = flatten(_plain(self.arguments))
        plain = {
            name: value if isinstance(value, int | float | str) else str(value) for name, value in settings.items()
        }
        self.accelerator.init_trackers("ultrafastbert", config=plain)  # tensorboard takes nothing but plain values
        self._announce()
        self.started, self.seconds_before, self.share_before = time.monotonic(), self.progress.seconds, self.share
        evaluation = None
        try:
            with Interrupt() as interrupt:
                while self.share < 1:
                    if not self._launch_step(interrupt):
                        self._stop(interrupt.signal)
                    evaluation = self._after_step()
                self._report_steps(everything=True)
                if self.steps_of_line:
                    self._write_line()
                evaluation = evaluation or self._evaluate()
                try:
                    if self.saved_step != self.progress.step:
                        self._save()
                finally:  # on a disk too full for the checkpoint there may be room for the model
                    self._write_final(final, evaluation)
            self._summarise(final, evaluation)
        finally:
            self.reporter.close()
            # The data-parallel model must go before the process group: as its last owner it would join a thread that
            # may be waiting for the interpreter.
            self.wrapped_model, self.optimizer = self.accelerator.free_memory(self.wrapped_model, self.optimizer)
            self.accelerator.end_training()
        return final

    @property
    def share(self) -> float:
        """The share of the budget that is spent, the same in all processes."""
        share = self.progress.share_of_budget(self.train)
        return share if self.accelerator.num_processes == 1 else broadcast_object_list([share])[0]

    def _launch_step(self, interrupt: Interrupt) -> bool:
        """Gives the device one optimiser step; False if a signal came, and then nothing has changed."""
        start = time.monotonic()
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        share, size = self.share, self.train.micro_batch_size
        count = micro_batches(share, self.train, processes)
        lr = self.train.lr * triangle(share, self.train.lr_peak)
        for group in self.optimizer.param_groups:
            group["lr"] = lr

        total = torch.zeros((), device=self.accelerator.device)
        for index in range(count):
            if self._is_interrupted(interrupt, first=index == 0):
                self.optimizer.zero_grad()
                return False
            last = index == count - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped_model):
                loss = self._loss(self.progress.rows + (index * processes + rank) * size) / count
                self.accelerator.backward(loss)
            total += loss.detach()
        values = update(self.model, self.optimizer, total, self.train.max_grad_norm, self.accelerator)
        rows = count * processes * size
        self.progress.step += 1
        self.progress.rows += rows
        self.progress.tokens += rows * self.data.sequence_length
        self._spend_time()
        self.steps.launched(self._where(), lr, rows, start, values)
        return True

    def _loss(self, place: int) -> torch.Tensor:
        """The mean loss of the micro-batch whose first row is row `place` of the training data's order."""
        rows = to_device(self.rows.read(place, self.train.micro_batch_size), self.accelerator.device)
        return masked_loss(self.wrapped_model, self.masker(rows, place), self.autocast)

    def _is_interrupted(self, interrupt: Interrupt, first: bool) -> bool:
        """Whether a signal came, in any process; several processes agree on it once a step."""
        if self.accelerator.num_processes == 1:
            return interrupt.signal is not None
        if not first:
            return False
        signal = torch.tensor(interrupt.signal or 0, device=self.accelerator.device)
        interrupt.signal = self.accelerator.gather(signal).max().item() or None
        return interrupt.signal is not None

    def _after_step(self) -> Evaluation | None:
        """Reports, evaluates and saves where it is time to; the evaluation if there was one."""
        number, train = self.progress.step, self.train
        evaluates, saves = number % train.eval_every == 0, number % train.checkpoint_every == 0
        self._report_steps(everything=evaluates or saves)
        evaluation = self._evaluate() if evaluates else None
        if saves:
            try:
                self._save()
            except CheckpointError as error:  # the run is worth more than this checkpoint, and the next may succeed
                self.reporter.say(f"warning: {error}; training goes on, earlier checkpoints are kept")
        self._spend_time()
        return evaluation

    def _report_steps(self, everything: bool) -> None:
        """Reports the steps whose numbers have arrived; for `everything`, those of all steps are waited for."""
        for step in self.steps.read(everything):
            if step.is_finite:
                self.progress.skipped_in_a_row = 0
            else:
                self.progress.skipped += 1
                self.progress.skipped_in_a_row += 1
            self.steps_of_line.append(step)
            self._show_progress(step)
            if step.where["step"] % self.train.log_every == 0:
                self._write_line()
            if not step.is_finite:
                self._report_skipped_step(step)

    def _write_line(self) -> None:
        self.reporter.metrics(self.steps_of_line[-1].where | self._metrics() | {"skipped": self.progress.skipped})
        self.steps_of_line = []

    def _metrics(self) -> dict:
        """Those of the steps since the last line, with MFU where the device's peak is known."""
        length, processes = self.data.sequence_length, self.accelerator.num_processes
        metrics = summarise(self.steps_of_line, length)
        rows = metrics["tokens_per_second"] / length / processes
        flops = training_flops(
            self.model.config, rows, length, masks_per_sequence(length, self.train.mask_probability)
        )
        dtype = torch.bfloat16 if self.in_bf16 else torch.float32
        mfu = utilization(flops, seconds=1, device=self.accelerator.device, dtype=dtype)
        return metrics if mfu is None else metrics | {"mfu": mfu}

    def _report_skipped_step(self, step: Step) -> None:
        progress, limit = self.progress, self.train.max_skipped_steps
        self.reporter.say(
            f"step {step.where['step']}: loss {step.loss}, gradient norm {step.gradient_norm}: the step is left out"
            f" ({progress.skipped_in_a_row} in a row, {progress.skipped} in all)"
        )
        if progress.skipped_in_a_row >= limit:
            good = find_checkpoint(self.output / "checkpoints")
            raise UserError(
                f"the loss was not finite in {limit} steps in a row (train.max_skipped_steps), up to step"
                f" {step.where['step']}; the last good checkpoint: {good or 'none, none had been written yet'}."
                " A lower train.lr may help."
            )

    def _spend_time(self) -> None:
        self.progress.seconds = self.seconds_before + time.monotonic() - self.started

    # evaluation and reports

    def _evaluate(self) -> Evaluation:
        evaluation = evaluate(
            self.model,
            self.validation_rows,
            self.validation_masker,
            self.train.micro_batch_size,
            self.accelerator,
            self.autocast,
        )
        values = {"validation_loss": evaluation.loss, "validation_accuracy": evaluation.accuracy}
        if evaluation.leaves_used:
            values |= {"leaves_used": evaluation.leaves_used, "leaf_entropy": evaluation.leaf_entropy}
        self.reporter.metrics(self._where() | values)
        self._plot()
        self.reporter.say(f"step {self.progress.step} ({self.share:.0%}): {_describe(evaluation, self.data)}")
        return evaluation

    def _plot(self) -> None:
        if self.accelerator.is_main_process:
            try:
                plot_runs({self.arguments.model.fff: self.output}, self.output / "plots", self.data.unigram_entropy)
            except OSError as error:  # plots can be drawn again from the metrics
                self.reporter.say(f"warning: the plots could not be written: {error}")

    def _where(self) -> dict:
        progress = self.progress
        return {
            "step": progress.step,
            "share": round(progress.share_of_budget(self.train), 6),
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 3),
        }

    def _show_progress(self, step: Step) -> None:
        share, metrics = self.progress.share_of_budget(self.train), self._metrics()
        elapsed = time.monotonic() - self.started
        left = elapsed * (1 - share) / (share - self.share_before) if share > self.share_before else 0
        skipped = f" | {self.progress.skipped} steps left out" if self.progress.skipped else ""
        mfu = f", {metrics['mfu']:.0%} MFU" if "mfu" in metrics else ""
        self.reporter.progress(
            share,
            f"step {step.where['step']} | loss {step.loss:.3f} | {metrics['tokens_per_second']:,.0f} tokens/s{mfu}"
            f" | {duration(left)} left{skipped}",
        )

    def _announce(self) -> None:
        data, size = self.data, sum(p.numel() for p in self.model.parameters())
        self.reporter.say(
            f"{self.arguments.model.fff} encoder, {size / 1e6:.1f} million parameters, on {self.accelerator.device}"
            f" ({self.accelerator.num_processes} process{'es' if self.accelerator.num_processes > 1 else ''},"
            f" {'bf16' if self.in_bf16 else 'fp32'})\n"
            f"{data.train.size / 1e6:.1f} million tokens of training data, {data.validation.size / 1e6:.2f} million of"
            f" validation; unigram entropy {data.unigram_entropy:.3f} nats"
        )
        if self.progress.step:
            self.reporter.say(f"going on at step {self.progress.step}, {self.share:.0%} of the budget spent")

    def _summarise(self, final: Path, evaluation: Evaluation) -> None:
        if not self.accelerator.is_main_process:
            return
        progress = self.progress
        self.reporter.close()
        print(
            f"\n{progress.step} steps, {progress.tokens / 1e6:.1f} million tokens in {duration(progress.seconds)}"
            f" ({progress.tokens / max(progress.seconds, 1e-9):,.0f} tokens/s, evaluation and checkpoints included);"
            f" {progress.skipped} steps left out"
            f"\n{_describe(evaluation, self.data)}"
            f"\nplots: {self.output / 'plots'}, metrics: {self.output / 'metrics.jsonl'}"
            f"\nmodel: {final}; to use it:\n"
            f"\n    import ultrafastbert"
            f"\n    from transformers import pipeline"
            f'\n    print(pipeline("fill-mask", "{final}")("The first [MASK] of the list is returned."))\n'
        )

    # what is written and read

    def _load(self, checkpoint: Path) -> None:
        try:
            self.accelerator.load_state(str(checkpoint))
        except Exception as error:  # whatever torch, safetensors and pickle say of a state they cannot read
            raise CheckpointError(f"checkpoint {checkpoint} cannot be loaded: {error}") from error
        if checkpoint.resolve().parent.parent == self.output.resolve():
            self.saved_step = self.progress.step

    def _save(self) -> None:
        self._spend_time()
        content = {
            "progress": asdict(self.progress),
            "arguments": _plain(self.arguments),
            "data_fingerprint": self.data.fingerprint,
        }
        directory, step = self.output / "checkpoints", self.progress.step
        save_checkpoint(self.accelerator, directory, step, content, self.train.keep_checkpoints)
        self.saved_step = step

    def _stop(self, signal: int) -> None:
        self._report_steps(everything=True)
        if self.saved_step != self.progress.step:
            self._save()
        command = "the same command" if self.arguments.resume == "auto" else "the same command with --resume auto"
        raise Interrupted(
            f"stopped by signal {signal} after step {self.progress.step} ({self.share:.0%} of the budget); saved in "
            f"{self.output / 'checkpoints' / f'step-{self.progress.step}'}; {command} goes on from there",
            signal,
        )

    def _write_final(self, final: Path, evaluation: Evaluation) -> None:
        origin = asdict(self.progress) | asdict(evaluation)
        origin |= {"unigram_entropy": self.data.unigram_entropy, "data_fingerprint": self.data.fingerprint}

        def write(aside: Path) -> None:
            if self.accelerator.is_main_process:
                self.model.save_pretrained(aside)
                AutoTokenizer.from_pretrained(self.data.tokenizer_directory).save_pretrained(aside)
                (aside / ORIGIN).write_text(json.dumps(origin, indent=2), encoding="utf-8")

        try:
            write_directory(final, write, self.accelerator)
        except Exception as error:  # as for a checkpoint
            raise UserError(
                f"the trained model could not be written to {final}: {error}; make room and go on with --resume auto"
                f" from the last checkpoint in {self.output / 'checkpoints'}"
            ) from error

    def _write_config(self) -> None:
        if self.accelerator.is_main_process:
            versions = f"torch {torch.__version__}, transformers {transformers_version}"
            comment = (
                f"# {versions}, Python {platform.python_version()}\n"
                f"# data: {self.data.directory}, fingerprint {self.data.fingerprint}\n"
            )
            settings = _plain(self.arguments) | {"resume": "auto"}  # whoever uses this file again wants to go on
            text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
            write_atomically(self.output / "config.yaml", comment + text)


def _describe(evaluation: Evaluation, data: PackedData) -> str:
    text = (
        f"validation loss {evaluation.loss:.3f} nats (unigram entropy {data.unigram_entropy:.3f}),"
        f" accuracy {evaluation.accuracy:.1%}"
    )
    if evaluation.leaves_used:
        used, entropy = evaluation.leaves_used, evaluation.leaf_entropy
        text += (
            f"; leaves in use {min(used):.0%} to {max(used):.0%} a layer,"
            f" entropy of their use {min(entropy):.2f} to {max(entropy):.2f} (1: even)"
        )
    return text


def _build_accelerator(arguments: PretrainArguments) -> Accelerator:
    """An accelerator with the trackers; mixed precision is the loop's own, so it is off here."""
    trackers = arguments.train.trackers
    try:
        accelerator = Accelerator(mixed_precision="no", log_with=trackers or None, project_dir=arguments.output_dir)
    except ValueError as error:
        raise UserError(f"train.trackers is {trackers}: {error}") from error
    missing = len(trackers) - len(accelerator.log_with)
    if missing:
        raise UserError(
            f"train.trackers is {trackers}: {missing} of them cannot be used; are their packages installed?"
        )
    return accelerator


def _build_config(arguments: PretrainArguments, data: PackedData) -> UltraFastBertConfig:
    try:
        return arguments.model.build_config(data.vocab_size, data.sequence_length)
    except StrictDataclassError as error:
        raise UserError(f"model: {error}") from error


def _count_parameters(config: UltraFastBertConfig) -> int:
    """How many parameters the model has, without making them."""
    with torch.device("meta"):
        return UltraFastBertForMaskedLM(config).num_parameters()


def _compare_settings(
    checkpoint: Path, content: dict, arguments: PretrainArguments, data: PackedData, talk: bool
) -> None:
    """Refuses to go on with another model, other data or another seed; says what else has changed."""
    before, now = flatten(content["arguments"]), flatten(_plain(arguments))
    changed = {name: (before.get(name), value) for name, value in now.items() if before.get(name) != value}
    fixed = {"data.fingerprint": (content["data_fingerprint"], data.fingerprint)}
    fixed |= {name: pair for name, pair in changed.items() if name.startswith("model.") or name == "seed"}
    wrong = [f"{name} was {old!r} and is {new!r}" for name, (old, new) in fixed.items() if old != new]
    if wrong:
        raise UserError(
            f"checkpoint {checkpoint} is of another run: {'; '.join(wrong)}. Choose another output_dir, or "
            "resume=never to start anew"
        )
    for name, (old, new) in changed.items():
        if talk and name.startswith("train."):
            print(f"changed since the checkpoint: {name} was {old!r} and is {new!r}")


def _step_of_final(final: Path) -> int | None:
    """The step at which the model in `final` was written; None if there is none."""
    try:
        return json.loads((final / ORIGIN).read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError):
        return None


def _plain(arguments: PretrainArguments) -> dict:
    """The arguments as JSON and YAML have them: lists for tuples."""
    return json.loads(json.dumps(arguments.to_dict()))
