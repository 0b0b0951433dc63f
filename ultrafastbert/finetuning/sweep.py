"""Fine-tuning over tasks and seeds: what finetune_glue.py does.

Notable:
- the runs of a sweep are independent, so several processes share them out instead of sharing every batch: a process
  takes the next run that nobody has taken, and results do not depend on how many processes there were;
- a run's directory is complete once `result.json` is in it; a sweep that was killed goes on with the runs that have
  none;
- `result.json` holds the settings, and hashes of the model and the rows: results of other settings are refused, never
  mixed.
"""

import contextlib
import hashlib
import json
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from filelock import FileLock, Timeout
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ultrafastbert.finetuning.arguments import FinetuneArguments
from ultrafastbert.finetuning.data.glue import TASKS, load_glue
from ultrafastbert.finetuning.data.predictions import SUBMISSION
from ultrafastbert.finetuning.data.tables import load_table
from ultrafastbert.finetuning.data.tasks import TaskData
from ultrafastbert.finetuning.metrics import load_metric
from ultrafastbert.finetuning.report import collect, write_report
from ultrafastbert.finetuning.trainer import Diverged, EncodedTask, encode_task, finetune, load_model, load_tokenizer
from ultrafastbert.runs.directory import open_run_directory, set_aside
from ultrafastbert.runs.interrupts import Interrupt
from ultrafastbert.utils.errors import Interrupted, UserError
from ultrafastbert.utils.files import write_atomically
from ultrafastbert.utils.progress import duration

NAMES = ["runs", "predictions", "glue.json", "glue.md"]
"""What a sweep writes in its output directory."""


def finetune_all(arguments: FinetuneArguments) -> dict:
    """Fine-tunes a model on every task with every seed, or goes on with a sweep that was stopped.

    Returns:
        The content of `glue.json`; see `finetune_report.collect`.

    Raises:
        UserError: a model, data, settings or directory that cannot be used; the message says what to mend.
        Interrupted: SIGINT, SIGTERM or SIGHUP; the finished runs are kept.
    """
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it would tell of the new head in every run; the results say it once
    # PartialState, unlike Accelerator, does not look for itself whether there is nothing but CPUs
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state, output = PartialState(cpu=cpu), Path(arguments.output_dir)
    try:
        with contextlib.ExitStack() as held:
            if state.is_main_process:
                held.enter_context(open_run_directory(output))
                if arguments.resume == "never":
                    set_aside(output, [output / name for name in NAMES if (output / name).exists()])
            state.wait_for_everyone()
            return Sweep(arguments, state).run()
    finally:
        transformers_logging.set_verbosity(verbosity)
        if state.num_processes > 1:
            state.destroy_process_group()


@dataclass(frozen=True)
class Run:
    """One training: a seed's, or the trial of a learning rate (`lr`) on held-out training rows."""

    task: str
    seed: int = 0
    lr: float | None = None

    @property
    def is_trial(self) -> bool:
        return self.lr is not None

    @property
    def name(self) -> str:
        return f"lr-{self.lr}" if self.is_trial else f"seed-{self.seed}"

    def __str__(self) -> str:
        return f"{self.task}, " + (f"learning rate {self.lr}" if self.is_trial else f"seed {self.seed}")


class Sweep:
    """All runs of a model, of which each process makes its part."""

    def __init__(self, arguments: FinetuneArguments, state: PartialState):
        self.arguments, self.state, self.output = arguments, state, Path(arguments.output_dir)
        self.tasks = _task_names(arguments)
        self.tokenizer = load_tokenizer(arguments.model, arguments.max_length)
        self.settings = arguments.settings | {"model_fingerprint": fingerprint_model(arguments.model)}
        self.encoded: EncodedTask | None = None
        self.fingerprints = {}
        for name in self.tasks:
            data = self._load(name)
            load_metric(data.task.metric)  # what is missing is better missed now than after training
            self.fingerprints[name] = data.fingerprint
            self._say(_describe(data))
        _compare_settings(self.output, self.settings, self.fingerprints)

    def run(self) -> dict:
        """Makes the runs that nobody has made, and writes the tables; see `finetune_all`."""
        with Interrupt() as self.interrupt:
            while not all(self._is_done(run) for run in self._runs()):
                if not self._take_one():
                    time.sleep(0.5)  # the rest is in other processes' hands
        return self._report(final=True) if self.state.is_main_process else {}

    def _runs(self) -> list[Run]:
        """The runs that are asked for; those of the seeds once the task's learning rates have been tried."""
        runs, rates = [], self.arguments.lr_sweep or ()
        for task in self.tasks:
            trials = [Run(task, lr=lr) for lr in rates]
            runs += trials
            if all(map(self._is_done, trials)):
                runs += [Run(task, seed) for seed in range(self.arguments.seeds)]
        return runs

    def _take_one(self) -> bool:
        """Makes the first run that is neither done nor taken; False if there is none."""
        for run in self._runs():
            if self._is_done(run):
                continue
            directory = self._directory(run)
            directory.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(directory.with_name(f".{run.name}.lock"))
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            try:
                if not self._is_done(run):
                    self._make(run)
                    return True
            finally:
                lock.release()
        return False

    def _make(self, run: Run) -> None:
        if self.encoded is None or self.encoded.task.name != run.task:
            self.encoded = None  # its memory goes first
            self.encoded = encode_task(self._load(run.task), self.tokenizer, self.arguments.max_length)
        directory, encoded = self._directory(run), self.encoded
        if directory.exists():  # of a run that was stopped
            shutil.rmtree(directory)
        directory.mkdir()

        lr = run.lr or self._best_lr(run.task)
        model, new = load_model(self.arguments.model, encoded.task, self.arguments, run.seed)
        result = {
            "run": str(run),
            "task": run.task,
            "metric": encoded.task.primary,
            "seed": run.seed,
            "lr": lr,
            "is_trial": run.is_trial,
            "settings": self.settings,
            "data_fingerprint": self.fingerprints[run.task],
            "rows": _count_rows(encoded.data),
            "notes": _notes(encoded.data),
            "truncated": encoded.truncated,
            "new_weights": new,
            "parameters": model.num_parameters(),
            "environment": _environment(self.state.device),
        }
        try:
            outcome = finetune(
                model, encoded, self.arguments, lr, run.seed, self.state.device, self._check, run.is_trial
            )
        except Diverged as error:  # the same would happen again: that is the result
            outcome = {"diverged": str(error)}
        try:
            self._save(run, model, result, outcome)
        except Exception as error:  # a full disk is an OSError, or an error of safetensors
            raise UserError(f"{run}: its result cannot be written to {directory}: {error}") from error
        self._tell(run, result | outcome)

    def _save(self, run: Run, model: PreTrainedModel, result: dict, outcome: dict) -> None:
        directory = self._directory(run)
        for title, predictions in outcome.pop("predictions", {}).items():
            np.save(directory / f"{title}.npy", predictions)
        if self.arguments.save_models and not run.is_trial and "diverged" not in outcome:
            model.save_pretrained(directory / "model")
            self.tokenizer.save_pretrained(directory / "model")
        write_atomically(directory / "result.json", json.dumps(result | outcome, indent=1))

    def _best_lr(self, task: str) -> float:
        """The recipe's learning rate, or the one that was best on held-out rows."""
        if self.arguments.lr_sweep is None:
            return self.arguments.lr
        scores = {lr: self._read(Run(task, lr=lr)).get("held_out") for lr in self.arguments.lr_sweep}
        finite = {lr: score for lr, score in scores.items() if score is not None}
        if not finite:
            raise UserError(f"lr_sweep is {list(scores)}: {task} diverged with all of them; lower ones may help")
        return max(finite, key=finite.get)

    def _tell(self, run: Run, result: dict) -> None:
        """Says how a run came out and brings the tables up to date."""
        runs = self._runs()
        done = sum(map(self._is_done, runs))
        if "diverged" in result:
            text = f"diverged: {result['diverged']}"
        elif run.is_trial:
            text = f"held-out {result['metric']} {result['held_out']:.4f}"
        else:
            scores = {title: split["values"][result["metric"]] for title, split in result["evaluations"].items()}
            text = ", ".join(f"{title} {result['metric']} {score:.4f}" for title, score in scores.items())
        seconds = f", {duration(result['seconds'])}" if "seconds" in result else ""
        print(f"{run}: {text} ({done} of {len(runs)} runs{seconds})", flush=True)
        for split in result.get("evaluations", {}).values():
            for warning in split["warnings"]:
                print(f"  warning: {warning}", flush=True)
        if self.state.is_main_process:
            self._report()

    def _report(self, final: bool = False) -> dict:
        results = collect(self.output, self.arguments.model, self.arguments.random_init)
        files = write_report(self.output, results, {name: self._load(name) for name in self.tasks} if final else {})
        if final:
            print(f"\n{files['table'].read_text(encoding='utf-8')}")
            print("written: " + ", ".join(str(file) for file in files.values()))
        return results

    def _load(self, name: str) -> TaskData:
        if self.encoded is not None and self.encoded.task.name == name:
            return self.encoded.data
        own = self.arguments.own
        if own.train is None:
            return load_glue(name, self.arguments.data_dir)
        return load_table(name, own.train, own)

    def _check(self) -> None:
        """Ends the run under way if a signal came."""
        if self.interrupt.signal is not None:
            runs = self._runs()
            done = sum(map(self._is_done, runs))
            command = "the same command" if self.arguments.resume == "auto" else "the same command with --resume auto"
            raise Interrupted(
                f"stopped by signal {self.interrupt.signal}; {done} of {len(runs)} runs are finished and kept in"
                f" {self.output / 'runs'}; {command} goes on with the others",
                self.interrupt.signal,
            )

    def _directory(self, run: Run) -> Path:
        return self.output / "runs" / run.task / run.name

    def _is_done(self, run: Run) -> bool:
        return (self._directory(run) / "result.json").exists()

    def _read(self, run: Run) -> dict:
        return json.loads((self._directory(run) / "result.json").read_text(encoding="utf-8"))

    def _say(self, text: str) -> None:
        if self.state.is_main_process:
            print(text, flush=True)


def fingerprint_model(name: str) -> str:
    """What tells a checkpoint from another: a hash of its files, or the commit of the Hub's."""
    directory = Path(name)
    if not directory.is_dir():
        commit = getattr(AutoConfig.from_pretrained(name), "_commit_hash", None)
        return f"{name}@{commit}"
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.suffix in (".safetensors", ".bin", ".json", ".txt", ".model") and path.name != "pretraining.json":
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _task_names(arguments: FinetuneArguments) -> list[str]:
    if arguments.own.train is not None:
        name = Path(arguments.own.train).name.split(".")[0]
        return [f"own-{name}" if name in (*TASKS, *SUBMISSION) else name]  # never among the benchmark's
    names = arguments.tasks or list(TASKS)
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        raise UserError(f"tasks: {', '.join(unknown)} should be of {', '.join(TASKS)}")
    return names


def _compare_settings(output: Path, settings: dict, fingerprints: dict[str, str]) -> None:
    """Refuses to go on among results of another model, other rows or another recipe."""
    for path in sorted((output / "runs").glob("*/*/result.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            before = result["settings"] | {"data_fingerprint": result["data_fingerprint"]}
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{path} is not the result of a run: {error!r}; remove it to make that run again"
            ) from None
        now = settings | {"data_fingerprint": fingerprints.get(result["task"], result["data_fingerprint"])}
        changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        if changed:
            what = "; ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in changed)
            raise UserError(
                f"output_dir {output} holds results of other settings ({path.parent}): {what}. Choose another"
                " output_dir, or --resume never to start anew"
            )


def _count_rows(data: TaskData) -> dict[str, int]:
    rows = {"train": len(data.train)} | {f"dev {split.title}": len(split) for split in data.evaluations}
    return rows | {f"test {split.title}": len(split) for split in data.tests}


def _notes(data: TaskData) -> list[str]:
    return [note for split in (data.train, *data.evaluations, *data.tests) for note in split.notes]


def _describe(data: TaskData) -> str:
    rows = ", ".join(f"{name} {count:,}" for name, count in _count_rows(data).items())
    return "\n".join([f"{data.task.name}: {rows} rows", *(f"  note: {note}" for note in _notes(data))])


def _environment(device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"device": name, "python": platform.python_version()} | versions
