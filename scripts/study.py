"""Compares encoders with different feedforward layers: the same budget, several seeds, one table and one figure.

    python scripts/study.py STUDY.yaml

The file has options of `ultrafastbert pretrain` that all trainings share (`model`, `data`, `train`) and, in `models`,
those in which each model differs:

    models:
      none: {model.fff: none}
      dense: {model.fff: dense-512}
      1x8: {model.fff: 1x8}
    seeds: 3
    output_dir: out/study

A model is compared with one of no feedforward layer (`none`) and with the largest dense one: its *recovered fraction*
is (L_none - L) / (L_none - L_dense), where L is the validation loss at the end. Seeds are paired, because a seed
decides the order of the data and the masks. The same command resumes a study that was stopped.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import yaml

from ultrafastbert.benchmarks.bert import split_trees
from ultrafastbert.cli import parse_arguments
from ultrafastbert.modeling_ultrafastbert import UltraFastBertForMaskedLM
from ultrafastbert.pretraining.arguments import ModelArguments, PretrainArguments, TrainArguments
from ultrafastbert.pretraining.data.arguments import DataArguments
from ultrafastbert.pretraining.data.prepare import prepare
from ultrafastbert.runs.directory import CONFIG, FINAL, METRICS, open_run_directory
from ultrafastbert.runs.environment import environment
from ultrafastbert.runs.interrupts import Interrupt
from ultrafastbert.runs.precision import uses_bf16
from ultrafastbert.runs.reporter import read_metrics
from ultrafastbert.runs.settings import changed_settings, refuse_changes
from ultrafastbert.utils.errors import Interrupted, UserError
from ultrafastbert.utils.figures import new_figure, save_figure
from ultrafastbert.utils.files import write_atomically
from ultrafastbert.utils.sizes import DenseSize, NoSize, parse_size
from ultrafastbert.utils.tables import markdown_table
from ultrafastbert.utils.timing import take_turns
from ultrafastbert.utils.validation import NOT_EMPTY, POSITIVE, check_fields

CPU = torch.device("cpu")
HEADER = (
    "model",
    "neurons used",
    "parameters, millions",
    "tokens, millions",
    "minutes",
    "loss, nats",
    "accuracy",
    "recovered",
    "leaves used, by layer",
    "entropy of their use",
    "layer: training, inference (us a token)",
)


@dataclass
class StudyArguments:
    """Encoders trained with the same budget."""

    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The models by name: options of `ultrafastbert pretrain` in which they differ, such as {model.fff: 1x8}."""
    model: ModelArguments = field(default_factory=ModelArguments)
    """Model"""
    data: DataArguments = field(default_factory=DataArguments)
    """Data"""
    train: TrainArguments = field(default_factory=TrainArguments)
    """Training"""
    seeds: int = 3
    """Trainings of each model, with the seeds 0, 1, ..."""
    workers: int = 2
    """Trainings at a time; they share the processors evenly."""
    timing_seconds: float = 2.0
    """How long the feedforward layer of each model is timed. [seconds]"""
    output_dir: str = "out/study"
    """Directory of the study: study.md, study.json, study.png, and a directory of every training in runs/."""

    def __post_init__(self):
        check_fields(self, POSITIVE, "seeds", "workers", "timing_seconds")
        check_fields(self, NOT_EMPTY, "models", "output_dir")


@dataclass(frozen=True)
class Run:
    """A training of the study: of the model `name`, with the words of its command line."""

    name: str
    seed: int
    words: tuple[str, ...]
    output: Path

    @property
    def is_finished(self) -> bool:
        """Whether it has written its model."""
        return (self.output / FINAL).exists()

    @property
    def arguments(self) -> PretrainArguments:
        """Its options; a wrong one ends the program with a message."""
        return parse_arguments(PretrainArguments, list(self.words), f"models.{self.name}")


def plan(arguments: StudyArguments) -> list[Run]:
    """All trainings, seed by seed, so that a study that is stopped early has compared all models."""
    output = Path(arguments.output_dir)
    common = output / "common.yaml"
    shared = {section: asdict(getattr(arguments, section)) for section in ("model", "data", "train")}
    write_atomically(common, yaml.safe_dump(json.loads(json.dumps(shared)), sort_keys=False))
    runs = []
    for seed in range(arguments.seeds):
        for name, options in arguments.models.items():
            directory = output / "runs" / name / f"seed-{seed}"
            own = [f"--{option}={_word(value)}" for option, value in options.items()]
            words = ("--config", str(common), *own, f"--seed={seed}", f"--output_dir={directory}")
            runs.append(Run(name, seed, words, directory))
    return runs


def refuse_other_settings(run: Run) -> None:
    """Raises a UserError if the directory of a training has one with other options."""
    file = run.output / CONFIG
    if file.exists():
        before, now = yaml.safe_load(file.read_text(encoding="utf-8")), run.arguments.to_dict()
        refuse_changes(
            str(run.output), changed_settings(before, now), "Choose another output_dir, or remove that one."
        )


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def train(runs: list[Run], workers: int) -> None:
    """Runs the trainings that are not finished, some at a time; each resumes by itself.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGHUP, after all trainings have saved their state.
        UserError: a training failed; the others were stopped and have saved their state.
    """
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    waiting = [run for run in runs if not run.is_finished]
    total = len(runs)
    running: dict[Run, subprocess.Popen] = {}
    with Interrupt() as interrupt, _stopping(running):
        while waiting or running:
            while waiting and len(running) < workers and interrupt.signal is None:
                run = waiting.pop(0)
                running[run] = _start(run, threads)
            failed = [run for run, process in running.items() if process.poll() not in (None, 0)]
            for run in [run for run, process in running.items() if process.poll() is not None]:
                del running[run]
                print(f"{sum(run.is_finished for run in runs)} of {total}: {_outcome(run)}", flush=True)
            if interrupt.signal is not None:
                message = f"stopped by signal {interrupt.signal}; all is saved, the same command resumes"
                raise Interrupted(message, interrupt.signal)
            if failed:
                raise UserError(f"the training of {failed[0].name} failed; see {_log(failed[0])}")
            time.sleep(0.5)


@contextmanager
def _stopping(running: dict[Run, subprocess.Popen]) -> Iterator[None]:
    """A context in which trainings run; whatever ends it, those still running save their state and end before."""
    try:
        yield
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def _log(run: Run) -> Path:
    return run.output.parent / f"seed-{run.seed}.log"


def _start(run: Run, threads: str) -> subprocess.Popen:
    run.output.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ultrafastbert", "pretrain", *run.words]
    with _log(run).open("a") as log:
        # its own session: Ctrl-C reaches this program alone, which passes on one signal; a second one would kill
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": threads},
            start_new_session=True,
        )


def _outcome(run: Run) -> str:
    if not run.is_finished:
        return f"{run.name}, seed {run.seed}: not finished"
    line = _last_validation(run)
    loss, accuracy = line["validation_loss"], line["validation_accuracy"]
    return f"{run.name}, seed {run.seed}: {loss:.3f} nats, {accuracy:.1%}"


def _last_validation(run: Run) -> dict[str, Any]:
    return [line for line in read_metrics(run.output / METRICS) if "validation_loss" in line][-1]


def measure(runs: list[Run], seconds: float) -> list[dict[str, Any]]:
    """For each model its size, the results of its seeds, and the times of its feedforward layer."""
    models: dict[str, dict[str, Any]] = {}
    training, inference = {}, {}
    for run in runs:
        if run.name not in models:
            arguments, data = run.arguments, prepare(run.arguments.data, progress=False)
            size = parse_size(arguments.model.fff)
            config = arguments.model.build_config(data.vocab_size, data.sequence_length)
            model = UltraFastBertForMaskedLM(config)
            split_trees(model)
            models[run.name] = {
                "model": run.name,
                "fff": str(size),
                "used": size.used,
                "parameters": model.num_parameters(),
                "seeds": [],
            }
            if not isinstance(size, NoSize):
                layer: Any = model.model.layers[0].feedforward
                tokens = torch.randn(arguments.train.micro_batch_size * data.sequence_length, config.hidden_size)
                bf16 = uses_bf16(arguments.train.precision, CPU, config.hidden_size)
                training[run.name] = partial(_train_layer, layer, tokens.requires_grad_(), bf16), len(tokens)
                inference[run.name] = partial(_apply_layer, layer.eval(), torch.randn(128, config.hidden_size)), 128
        line = _last_validation(run)
        result = {name: line[name] for name in ("validation_loss", "validation_accuracy", "tokens", "seconds")}
        result |= {name: line.get(name) or [] for name in ("leaves_used", "leaf_entropy")}  # a value for each layer
        models[run.name]["seeds"].append({"seed": run.seed} | result)
    for kind, calls in (("training", training), ("inference", inference)):
        times = take_turns({name: call for name, (call, _) in calls.items()}, seconds)
        for name, (_, count) in calls.items():
            median = sorted(times[name])[len(times[name]) // 2]
            models[name][f"{kind}_microseconds"] = 1e6 * median / count
    return list(models.values())


def _train_layer(layer: torch.nn.Module, tokens: torch.Tensor, bf16: bool) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        layer(tokens).sum().backward()


@torch.no_grad()
def _apply_layer(layer: torch.nn.Module, tokens: torch.Tensor) -> None:
    layer(tokens)


def recovered(models: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The recovered fraction of each model for each seed; {} without both controls.

    Of several dense models, the one with the most neurons is the control.
    """
    none = [model for model in models if isinstance(parse_size(model["fff"]), NoSize)]
    dense = [model for model in models if isinstance(parse_size(model["fff"]), DenseSize)]
    if not none or not dense:
        return {}
    worst, best = (_losses(model) for model in (none[0], max(dense, key=lambda model: model["used"])))
    return {
        model["model"]: [(w - x) / (w - b) for w, x, b in zip(worst, _losses(model), best, strict=True) if w != b]
        for model in models
    }


def _losses(model: dict[str, Any]) -> list[float]:
    return [seed["validation_loss"] for seed in model["seeds"]]


def tabulate(models: list[dict[str, Any]]) -> str:
    """The table of the study: means over seeds, with the standard deviation of more than one."""
    fractions, rows = recovered(models), []
    for model in models:
        seeds, timed = model["seeds"], "training_microseconds" in model
        has_leaves = any(seed["leaves_used"] for seed in seeds)
        fraction = fractions.get(model["model"])
        rows.append(
            (
                f"{model['model']} ({model['fff']})" if model["model"] != model["fff"] else model["model"],
                model["used"],
                f"{model['parameters'] / 1e6:.2f}",
                f"{mean(seed['tokens'] for seed in seeds) / 1e6:.1f}",
                f"{mean(seed['seconds'] for seed in seeds) / 60:.1f}",
                _with_spread(_losses(model), "{:.3f}"),
                _with_spread([100 * seed["validation_accuracy"] for seed in seeds], "{:.1f}") + " %",
                _with_spread([100 * value for value in fraction], "{:.0f}") + " %" if fraction else "",
                _by_layer(seeds, "leaves_used", 100, "{:.0f} %") if has_leaves else "",
                _by_layer(seeds, "leaf_entropy", 1, "{:.2f}") if has_leaves else "",
                f"{model['training_microseconds']:.2f}, {model['inference_microseconds']:.2f}" if timed else "",
            )
        )
    return markdown_table(HEADER, rows)


def _with_spread(values: list[float], form: str) -> str:
    text = form.format(mean(values))
    return f"{text} ± {form.format(stdev(values))}" if len(values) > 1 else text


def _by_layer(seeds: list[dict[str, Any]], name: str, factor: float, form: str) -> str:
    """The means over seeds of a value of each layer."""
    layers = zip(*(seed[name] for seed in seeds), strict=True)
    return ", ".join(form.format(factor * mean(values)) for values in layers)


def draw(models: list[dict[str, Any]], path: Path) -> Path:
    """The loss of every seed against the neurons that a token uses; `none` as a line."""
    figure, panels = new_figure(7, 4.2)
    axes = panels[0, 0]
    axes.set(xlabel="neurons that a token uses, per layer", ylabel="validation loss at the end (nats)", xscale="log")
    for model, color in _colored(models):
        losses = _losses(model)
        if model["used"] == 0:
            axes.axhline(mean(losses), color="grey", linestyle="--", label=model["model"])
        else:
            marker = "s" if model["fff"].startswith("dense") else "o"
            axes.plot([model["used"]] * len(losses), losses, marker, color=color, markersize=5, label=model["model"])
    axes.legend(fontsize=8)
    return save_figure(figure, path)


def _colored(models: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    return ((model, f"C{index % 10}") for index, model in enumerate(models))


def main(arguments: StudyArguments) -> None:
    """Trains, measures, and writes the table and the figure.

    Raises:
        UserError: an option, data or a directory that cannot be used, or a training that failed.
        Interrupted: a signal; trainings are kept.
    """
    output = Path(arguments.output_dir)
    with open_run_directory(output):
        runs = plan(arguments)
        for index, run in enumerate(runs):  # finds wrong options before hours of training
            refuse_other_settings(run)
            if run.seed == 0:
                prepare(run.arguments.data, progress=index == 0)
        train(runs, arguments.workers)
        models = measure(runs, arguments.timing_seconds)
        table = tabulate(models)
        content = {"environment": environment(CPU, "transformers"), "models": models}
        write_atomically(output / "study.json", json.dumps(content, indent=1) + "\n")
        write_atomically(output / "study.md", table + "\n")
        figure = draw(models, output / "study.png")
    print(f"\n{table}\n\nwritten: {output / 'study.md'}, {output / 'study.json'}, {figure}")


if __name__ == "__main__":
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        words.insert(0, "--config")
    try:
        main(parse_arguments(StudyArguments, words, "study.py", "Compares encoders with the same budget."))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
