"""Fine-tuning over tasks and seeds: `ultrafastbert finetune`.

Each task and seed is an independent training with a directory in `runs/`. Several processes divide the trainings among
themselves instead of splitting batches, so results do not depend on the number of processes. A sweep that was stopped
resumes with the trainings that have no `result.json`; see `runs.results`.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ultrafastbert.finetuning.arguments import FinetuneArguments
from ultrafastbert.finetuning.data.glue import TASKS, load_glue
from ultrafastbert.finetuning.data.predictions import SUBMISSION
from ultrafastbert.finetuning.data.tables import load_table
from ultrafastbert.finetuning.data.tasks import Split, TaskData, fingerprint
from ultrafastbert.finetuning.metrics import load_metric
from ultrafastbert.finetuning.report import collect, write_report
from ultrafastbert.finetuning.schema import PREDICTIONS, RESULTS, RUN_RESULT, RUNS, TABLE, TESTS
from ultrafastbert.finetuning.trainer import (
    Diverged,
    EncodedTask,
    compute_logits,
    encode_task,
    finetune,
    load_model,
    load_tokenizer,
)
from ultrafastbert.runs.directory import TRAINING_RECORD, open_run_directory, set_aside
from ultrafastbert.runs.environment import environment
from ultrafastbert.runs.models import locate_model
from ultrafastbert.runs.precision import uses_bf16
from ultrafastbert.runs.results import ResultStore
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import write_atomically
from ultrafastbert.utils.progress import duration

NAMES = [RUNS, PREDICTIONS, RESULTS, TABLE]
"""The files and directories that a sweep writes in its output directory."""


def finetune_all(arguments: FinetuneArguments) -> Mapping[str, Any]:
    """Fine-tunes a model on every task with every seed, or resumes a sweep that was stopped.

    Returns:
        The content of `glue.json`, as `report.collect` returns it; {} in processes other than the main one.

    Raises:
        UserError: a model, data, settings or directory that cannot be used, or, after all trainings, some that
            diverged; the message says what to change.
        Interrupted: SIGINT, SIGTERM or SIGHUP; finished trainings are kept.
    """
    # Unlike Accelerator, PartialState does not choose the CPU where no accelerator is available.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state, output = PartialState(cpu=cpu), Path(arguments.output_dir)
    try:
        arguments.model = locate_model(arguments.model)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_quiet_transformers())
            if state.is_main_process:
                stack.enter_context(open_run_directory(output))
                if arguments.resume == "never":
                    set_aside(output, [output / name for name in NAMES if (output / name).exists()])
            state.wait_for_everyone()
            return Sweep(arguments, state).run()
    finally:
        if state.num_processes > 1:
            state.destroy_process_group()


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Suppresses the report of new weights in every training: results list them."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


@dataclass(frozen=True)
class TaskRun:
    """One training on one task: with a seed, or to try a learning rate `lr` on held-out training examples."""

    task: str
    seed: int = 0
    lr: float | None = None

    @property
    def is_trial(self) -> bool:
        """Whether a learning rate is tried."""
        return self.lr is not None

    @property
    def file(self) -> str:
        """The path of the result in `runs/`."""
        directory = f"lr-{self.lr}" if self.is_trial else f"seed-{self.seed}"
        return f"{self.task}/{directory}/{RUN_RESULT}"

    def __str__(self) -> str:
        return f"{self.task}, " + (f"learning rate {self.lr}" if self.is_trial else f"seed {self.seed}")


class Sweep:
    """All trainings of a model; each process runs some of them."""

    def __init__(self, arguments: FinetuneArguments, state: PartialState):
        self.arguments, self.state, self.output = arguments, state, Path(arguments.output_dir)
        self.results = ResultStore(
            self.output / RUNS,
            resume="the same command" + (" with --resume auto" if arguments.resume == "never" else ""),
            remedy="Choose another output_dir, or --resume never to start again.",
        )
        self.loaders = _task_loaders(arguments)
        self.tokenizer = load_tokenizer(arguments.model, arguments.max_length)
        self.settings = arguments.settings | {"model_fingerprint": fingerprint_model(arguments.model)}
        self.encoded: EncodedTask | None = None
        self.fingerprints: dict[str, list[str]] = {}
        for name, load in self.loaders.items():
            data = load()
            load_metric(data.task.metric)  # so that a missing library stops the sweep before it trains
            # second, what earlier versions stored for data with tests of your own
            self.fingerprints[name] = [data.fingerprint, fingerprint(data.splits.values())]
            if state.is_main_process:
                print(_describe(data), flush=True)
        self._refuse_other_settings()

    def _refuse_other_settings(self) -> None:
        """Raises an error if any result, of whatever task, is of another model, other data or another recipe."""
        for path in sorted(self.results.directory.glob(f"*/*/{RUN_RESULT}")):
            file = path.relative_to(self.results.directory)
            task = file.parts[0]
            accepted = self.fingerprints.get(task, [])
            found = self.results.read(file).get("data_fingerprint")
            data = {"data_fingerprint": found if found in accepted else accepted[0]} if accepted else {}
            self.results.read(file, self.settings | data)

    def run(self) -> Mapping[str, Any]:
        """Runs the trainings that have no result, and writes the tables; see `finetune_all`."""
        self.results.finish(self._plan, self._train)
        if not self.state.is_main_process:
            return {}
        self._report()
        self._predict_added_tests()
        results = self._report(final=True)
        _refuse_diverged(results)
        return results

    def _plan(self) -> list[TaskRun]:
        """All trainings; those with seeds join once the task's learning rates have been tried."""
        plan = []
        for task in self.loaders:
            trials = [TaskRun(task, lr=lr) for lr in self.arguments.lr_sweep or ()]
            plan += trials
            if all(map(self.results.is_finished, trials)):
                plan += [TaskRun(task, seed) for seed in range(self.arguments.seeds)]
        return plan

    def _train(self, run: TaskRun, check: Callable[[], None]) -> None:
        arguments, encoded = self.arguments, self._encode(run.task)
        device: torch.device = self.state.device  # pyright: ignore[reportAssignmentType]
        lr = run.lr or self._best_lr(run.task)
        model, new_weights = load_model(arguments.model, encoded.task, arguments, run.seed)
        result = {
            "run": str(run),
            "task": run.task,
            "metric": encoded.task.primary,
            "seed": run.seed,
            "lr": lr,
            "is_trial": run.is_trial,
            "settings": self.settings,
            "data_fingerprint": self.fingerprints[run.task][0],
            "rows": _count_examples(encoded.data),
            "notes": encoded.data.notes,
            "truncated": encoded.truncated,
            "new_weights": new_weights,
            "parameters": model.num_parameters(),
            "environment": environment(device, "transformers"),
        }
        try:
            result |= finetune(model, encoded, arguments, lr, run.seed, device, check, run.is_trial)
        except Diverged as error:  # it would happen again, so it is the result
            result |= {"diverged": str(error)}
        self._save(run, model, result)
        self._print(run, result)
        if self.state.is_main_process:
            self._report()

    def _save(self, run: TaskRun, model: PreTrainedModel, result: dict) -> None:
        """Writes predictions, the model if asked for, and at last the result, without the predictions."""
        directory = (self.results.directory / run.file).parent
        try:
            self._save_predictions(run, result.pop("predictions", {}))
            if self.arguments.save_models and not run.is_trial and "diverged" not in result:
                model.save_pretrained(directory / "model")
                self.tokenizer.save_pretrained(directory / "model")
        except Exception as error:  # for a full disk, an OSError or an error of safetensors
            raise UserError(f"{run}: {directory} cannot be written: {error}") from error
        self.results.write(run.file, result)

    def _save_predictions(self, run: TaskRun, predictions: dict[str, np.ndarray]) -> None:
        directory = (self.results.directory / run.file).parent
        for title, values in predictions.items():
            np.save(directory / f"{title}.npy", values)
        write_atomically(directory / TESTS, json.dumps(_fingerprints(self.loaders[run.task]().tests)))

    def _predict_added_tests(self) -> None:
        """Predicts tests of your own that a finished run has not seen, with its saved model.

        Raises:
            UserError: the model was not saved.
        """
        for task, load in self.loaders.items():
            data = load()
            if not data.tests or not data.tests_may_change:
                continue
            for run in [TaskRun(task, seed) for seed in range(self.arguments.seeds)]:
                result, directory = self.results.read(run.file), (self.results.directory / run.file).parent
                if "diverged" not in result and not self._has_predicted(data, result, directory):
                    self._predict(run, directory / "model")

    def _has_predicted(self, data: TaskData, result: dict[str, Any], directory: Path) -> bool:
        """Whether a run has predictions for the tests as they are today."""
        if (directory / TESTS).exists():
            with contextlib.suppress(OSError, ValueError):
                return json.loads((directory / TESTS).read_text(encoding="utf-8")) == _fingerprints(data.tests)
            return False
        return result["data_fingerprint"] == self.fingerprints[data.task.name][1]  # as earlier versions stored it

    def _predict(self, run: TaskRun, path: Path) -> None:
        if not path.is_dir():
            raise UserError(
                f"own.test was added or changed, and {run} has no saved model to predict it with (save_models); train"
                f" again with --resume never. The scores in {self.output / RESULTS} are complete"
            )
        encoded, predictions = self._encode(run.task), {}
        model, device = AutoModelForSequenceClassification.from_pretrained(path), self.state.device
        assert isinstance(device, torch.device)
        in_bf16 = uses_bf16(self.arguments.precision, device)
        for title, split in encoded.tests.items():
            logits = compute_logits(model, split, device, torch.autocast(device.type, torch.bfloat16, enabled=in_bf16))
            predictions[title] = logits[:, 0] if encoded.task.is_regression else logits.argmax(axis=1)
        self._save_predictions(run, predictions)
        print(f"{run}: predicted {', '.join(predictions)} with the saved model", flush=True)

    def _best_lr(self, task: str) -> float:
        """The recipe's learning rate, or the one that was best on held-out examples."""
        if self.arguments.lr_sweep is None:
            return self.arguments.lr
        trials = {lr: self.results.read(TaskRun(task, lr=lr).file) for lr in self.arguments.lr_sweep}
        scores = {lr: result["held_out"] for lr, result in trials.items() if "held_out" in result}
        if not scores:
            raise UserError(f"lr_sweep is {list(trials)}: {task} diverged with all of them; lower ones may help")
        return max(scores, key=lambda lr: scores[lr])

    def _print(self, run: TaskRun, result: dict) -> None:
        if "diverged" in result:
            text = f"diverged: {result['diverged']}"
        elif run.is_trial:
            text = f"held-out {result['metric']} {result['held_out']:.4f}"
        else:
            scores = {title: split["values"][result["metric"]] for title, split in result["evaluations"].items()}
            text = ", ".join(f"{title} {result['metric']} {score:.4f}" for title, score in scores.items())
        finished = list(map(self.results.is_finished, self._plan()))
        seconds = f", {duration(result['seconds'])}" if "seconds" in result else ""
        print(f"{run}: {text} ({sum(finished)} of {len(finished)} trainings{seconds})", flush=True)
        for split in result.get("evaluations", {}).values():
            for warning in split["warnings"]:
                print(f"  warning: {warning}", flush=True)

    def _report(self, final: bool = False) -> Mapping[str, Any]:
        """Writes the tables; after the last training also the predictions, and prints the table."""
        results = collect(self.output, self.arguments.model, self.arguments.random_init)
        files = write_report(
            self.output, results, {name: load() for name, load in self.loaders.items()} if final else {}
        )
        if final:
            print(f"\n{files['table'].read_text(encoding='utf-8')}")
            print("written: " + ", ".join(str(file) for file in files.values()))
        return results

    def _encode(self, task: str) -> EncodedTask:
        if self.encoded is None or self.encoded.task.name != task:
            self.encoded = None  # frees its memory first
            self.encoded = encode_task(self.loaders[task](), self.tokenizer, self.arguments.max_length)
        return self.encoded


def _fingerprints(tests: list[Split]) -> dict[str, str]:
    return {split.title: fingerprint([split]) for split in tests}


def _refuse_diverged(results: Mapping[str, Any]) -> None:
    """Raises a UserError if any training diverged; trials of learning rates may."""
    runs = [run for runs in results["tasks"].values() for run in runs if not run["is_trial"]]
    if diverged := [f"{run['run']} ({run['diverged']})" for run in runs if "diverged" in run]:
        raise UserError(
            f"{len(diverged)} of {len(runs)} trainings diverged and have no score: {'; '.join(diverged)}. A lower lr,"
            " or max_grad_norm 1, may help, in another output_dir or with --resume never. The other results are kept."
        )


def fingerprint_model(name: str) -> str:
    """A hash of the files of a checkpoint, or the commit of a model on the Hub; different for different weights."""
    directory = Path(name)
    if not directory.is_dir():
        commit = getattr(AutoConfig.from_pretrained(name), "_commit_hash", None)
        return f"{name}@{commit}"
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.suffix in (".safetensors", ".bin", ".json", ".txt", ".model") and path.name != TRAINING_RECORD:
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _task_loaders(arguments: FinetuneArguments) -> dict[str, Callable[[], TaskData]]:
    """What loads the examples of each task, by the name of the task."""
    own = arguments.own
    if own.train is not None:
        name = Path(own.train).name.split(".")[0]
        name = f"own-{name}" if name in (*TASKS, *SUBMISSION) else name  # never the name of a GLUE task
        return {name: partial(load_table, name, own.train, own)}
    names = arguments.tasks or list(TASKS)
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        raise UserError(f"tasks: {', '.join(unknown)} should be of {', '.join(TASKS)}")
    return {name: partial(load_glue, name, arguments.data_dir) for name in names}


def _count_examples(data: TaskData) -> dict[str, int]:
    return {name: len(split) for name, split in data.splits.items()}


def _describe(data: TaskData) -> str:
    counts = ", ".join(f"{name} {count:,}" for name, count in _count_examples(data).items())
    return "\n".join([f"{data.task.name}: {counts} examples", *(f"  note: {note}" for note in data.notes)])
