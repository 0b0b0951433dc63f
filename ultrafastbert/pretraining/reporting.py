"""What a pretraining run reports: metrics of its steps, evaluations, plots, and messages."""

import time
from pathlib import Path
from typing import Any

import torch

from ultrafastbert.pretraining.arguments import PretrainArguments
from ultrafastbert.pretraining.curves import plot_runs
from ultrafastbert.pretraining.data.masking import masks_per_sequence
from ultrafastbert.pretraining.data.packed import PackedData
from ultrafastbert.pretraining.evaluation import Evaluation
from ultrafastbert.pretraining.flops import training_flops
from ultrafastbert.pretraining.in_flight import StepResult
from ultrafastbert.pretraining.schedule import Progress, mask_probability
from ultrafastbert.pretraining.step import TrainingStep
from ultrafastbert.runs import backend
from ultrafastbert.runs.directory import METRICS, PLOTS
from ultrafastbert.runs.reporter import Reporter
from ultrafastbert.utils.hardware import utilization
from ultrafastbert.utils.progress import duration
from ultrafastbert.utils.settings import flatten


class PretrainingReporter(Reporter):
    """Reports the events of a pretraining run; the trainer keeps `progress` up to date.

    `measured` is what `runs.backend.measure_backends` returned, {} if nothing was measured.
    """

    def __init__(
        self,
        arguments: PretrainArguments,
        data: PackedData,
        step: TrainingStep,
        progress: Progress,
        measured: backend.Measured,
    ):
        self.output = Path(arguments.output_dir)
        super().__init__(self.output / METRICS, progress.step, step.accelerator)
        self.arguments, self.train, self.data = arguments, arguments.train, data
        self.step, self.progress, self.measured = step, progress, measured
        self.results: list[StepResult] = []  # since the last line of metrics

    def start(self) -> None:
        """Starts the trackers and prints the size of model and data."""
        settings = flatten(self.arguments.to_dict())
        for name, value in settings.items():
            if not isinstance(value, int | float | str):  # tensorboard takes no lists and no None
                settings[name] = str(value)
        self.accelerator.init_trackers("ultrafastbert", config=settings)
        self.started, self.fraction_at_start = time.monotonic(), self.progress.fraction_of_budget(self.train)
        parameters = sum(parameter.numel() for parameter in self.step.model.parameters())
        processes = self.accelerator.num_processes
        self.say(
            f"{self.arguments.model.fff} encoder, {parameters / 1e6:.1f} million parameters, on"
            f" {self.accelerator.device} ({processes} process{'es' if processes > 1 else ''},"
            f" {'bf16' if self.step.in_bf16 else 'fp32'})\n"
            f"{self.data.train.size / 1e6:.1f} million tokens of training data,"
            f" {self.data.validation.size / 1e6:.2f} million of validation data;"
            f" unigram entropy {self.data.unigram_entropy:.3f} nats"
        )
        for size, chosen in (self.progress.backends or {}).items():
            results = backend.describe(self.measured[size]) if size in self.measured else "as before"
            self.say(f"trees of {size}: backend {chosen} ({results})")
        if self.progress.step:
            self.say(f"resuming at step {self.progress.step}, {self.fraction_at_start:.0%} of the budget spent")

    def report_step(self, result: StepResult) -> None:
        """Shows the progress, and writes a line of metrics every `train.log_every` steps."""
        self.results.append(result)
        self._show_progress(result)
        if result.position["step"] % self.train.log_every == 0:
            self.write_line()
        if not result.is_finite:
            self.say(
                f"step {result.position['step']} skipped: loss {result.loss}, gradient norm {result.gradient_norm}"
                f" ({self.progress.skipped_in_a_row} in a row, {self.progress.skipped} in all)"
            )

    def write_line(self) -> None:
        """Writes the metrics of the steps since the last line, if there are any."""
        if self.results:
            self.metrics(self.results[-1].position | self._metrics() | {"skipped": self.progress.skipped})
            self.results = []

    def _metrics(self) -> dict[str, Any]:
        """Those of the steps since the last line, with MFU where the peak of the device is known."""
        length, processes = self.data.sequence_length, self.accelerator.num_processes
        metrics = summarize(self.results, length)
        sequences = metrics["tokens_per_second"] / length / processes
        fraction = self.results[-1].position["budget_fraction"]
        masked = masks_per_sequence(length, mask_probability(fraction, self.train))
        config: Any = self.step.model.config  # not a tensor
        flops = training_flops(config, sequences, length, masked)
        dtype = torch.bfloat16 if self.step.in_bf16 else torch.float32
        mfu = utilization(flops, seconds=1, device=self.accelerator.device, dtype=dtype)
        return metrics if mfu is None else metrics | {"mfu": mfu}

    def _show_progress(self, result: StepResult) -> None:
        fraction, metrics = self.progress.fraction_of_budget(self.train), self._metrics()
        spent = fraction - self.fraction_at_start
        remaining = (time.monotonic() - self.started) * (1 - fraction) / spent if spent > 0 else 0
        mfu = f", {metrics['mfu']:.0%} MFU" if "mfu" in metrics else ""
        skipped = f" | {self.progress.skipped} steps skipped" if self.progress.skipped else ""
        self.show_progress(
            fraction,
            f"step {result.position['step']} | loss {result.loss:.3f}"
            f" | {metrics['tokens_per_second']:,.0f} tokens/s{mfu} | {duration(remaining)} remaining{skipped}",
        )

    def report_evaluation(self, evaluation: Evaluation) -> None:
        """Writes a line of metrics, draws the plots and prints the result."""
        values: dict[str, Any] = {"validation_loss": evaluation.loss, "validation_accuracy": evaluation.accuracy}
        if evaluation.leaves_used:
            values |= {"leaves_used": evaluation.leaves_used, "leaf_entropy": evaluation.leaf_entropy}
        self.metrics(self.progress.position(self.train) | values)
        if self.active:
            try:
                plot_runs({self.arguments.model.fff: self.output}, self.output / PLOTS, self.data.unigram_entropy)
            except OSError as error:  # the plots can be drawn from the metrics later
                self.say(f"warning: the plots could not be written: {error}")
        fraction = self.progress.fraction_of_budget(self.train)
        self.say(f"step {self.progress.step} ({fraction:.0%}): {describe(evaluation, self.data.unigram_entropy)}")

    def summarize_run(self, final: Path, evaluation: Evaluation) -> None:
        """Closes the bar and prints what the run has done and how to use the model."""
        self.close()
        progress = self.progress
        self.say(
            f"\n{progress.step} steps, {progress.tokens / 1e6:.1f} million tokens in {duration(progress.seconds)}"
            f" ({progress.tokens / max(progress.seconds, 1e-9):,.0f} tokens/s, evaluation and checkpoints included);"
            f" {progress.skipped} steps skipped"
            f"\n{describe(evaluation, self.data.unigram_entropy)}"
            f"\nplots: {self.output / PLOTS}, metrics: {self.output / METRICS}"
            f"\nmodel: {final}; to use it:\n"
            f"\n    import ultrafastbert"
            f"\n    from transformers import pipeline"
            f'\n    print(pipeline("fill-mask", "{final}")("The first [MASK] of the list is returned."))\n'
        )


def summarize(results: list[StepResult], sequence_length: int) -> dict[str, Any]:
    """Metrics of consecutive steps: the mean loss of those that are finite, the rate, and values of the last step."""
    losses = [result.loss for result in results if result.is_finite]
    last = results[-1]
    sequences, seconds = sum(result.sequences for result in results), sum(result.seconds for result in results)
    return {
        "loss": sum(losses) / len(losses) if losses else None,
        "gradient_norm": last.gradient_norm if last.is_finite else None,
        "lr": last.lr,
        "batch_size": last.sequences,
        "tokens_per_second": sequence_length * sequences / seconds,
    }


def describe(evaluation: Evaluation, unigram_entropy: float) -> str:
    """The result of an evaluation in a line."""
    text = (
        f"validation loss {evaluation.loss:.3f} nats (unigram entropy {unigram_entropy:.3f}),"
        f" accuracy {evaluation.accuracy:.1%}"
    )
    if evaluation.leaves_used:
        used, entropy = evaluation.leaves_used, evaluation.leaf_entropy
        text += (
            f"; leaves used {min(used):.1%} to {max(used):.1%} per layer,"
            f" entropy of their use {min(entropy):.2f} to {max(entropy):.2f} (1: even)"
        )
    return text
