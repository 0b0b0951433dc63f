"""A pretraining run as its files tell it, whether it has finished, is running, or was stopped.

Every file may be missing or damaged: what that means for a reader is a line in `Run.notes`.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from ultrafastbert.pretraining.arguments import ModelArguments, TrainArguments
from ultrafastbert.pretraining.data.arguments import DataArguments
from ultrafastbert.runs.checkpoints import MANIFEST, numbered_checkpoints, read_record
from ultrafastbert.runs.directory import CHECKPOINTS, CONFIG, FINAL, METRICS, STARTS, TRAINING_RECORD
from ultrafastbert.runs.reporter import read_metrics
from ultrafastbert.runs.settings import changed_settings
from ultrafastbert.runs.starts import read_starts
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import is_intact
from ultrafastbert.utils.progress import duration

POSITION = ("step", "tokens", "seconds")
TRAINING = ("loss", "lr", "tokens_per_second", "gradient_norm", "batch_size", "mfu")
VALIDATION = ("validation_loss", "validation_accuracy")
BY_LAYER = ("leaves_used", "leaf_entropy")
MOST_LINES = 1500
"""Training lines of a run that a page has."""
UNKNOWN = "not recorded"
LARGEST = 1e300
"""Of the numbers that are shown; a damaged file may have larger ones."""


@dataclass
class Run:
    """What the directory of a run has.

    Attributes:
        name: in legends.
        directory: of the run.
        lines: of its metrics.
        written: when the last line of metrics was written, in UTC; None without metrics.
        settings: all options, nested; None if they cannot be read.
        comments: of the file of options: `versions`, `data` and `fingerprint`, those that are there.
        starts: one for each time the run started or resumed.
        record: of the final model; None if there is none.
        checkpoint: content of the newest readable `checkpoint.json`.
        notes: what is missing or damaged.
    """

    name: str
    directory: Path
    lines: list[dict[str, Any]] = field(default_factory=list)
    written: str | None = None
    settings: dict[str, Any] | None = None
    comments: dict[str, str] = field(default_factory=dict)
    starts: list[dict[str, Any]] = field(default_factory=list)
    record: dict[str, Any] | None = None
    checkpoint: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def training(self) -> list[dict[str, Any]]:
        """The lines of training."""
        return [line for line in self.lines if "loss" in line]

    @property
    def validations(self) -> list[dict[str, Any]]:
        """The lines of validation."""
        return [line for line in self.lines if "validation_loss" in line]

    @property
    def progress(self) -> dict[str, Any]:
        """What was recorded last of the run's progress: with the final model, or else at a checkpoint."""
        found = self.record or (self.checkpoint or {}).get("progress")
        return found if isinstance(found, dict) else {}


def read_run(directory: Path, name: str) -> Run:
    """Reads the files of a run.

    Raises:
        UserError: the directory has none of them, or cannot be read.
    """
    names = (METRICS, CONFIG, CHECKPOINTS, FINAL)
    if not any((directory / file).exists() for file in names):
        raise UserError(
            f"run {directory} {'is not a pretraining run' if directory.exists() else 'does not exist'}; it should be a"
            f" directory with {', '.join(names[:-1])} or {names[-1]}"
        )
    run = Run(name, directory)
    try:
        _read_metrics(run)
        _read_settings(run)
        _read_starts(run)
        _read_records(run)
    except OSError as error:
        raise UserError(f"run {directory} cannot be read: {error}") from error
    return run


def _read_metrics(run: Run) -> None:
    path, broken = run.directory / METRICS, []
    run.lines = read_metrics(path, broken)
    if path.exists():
        run.written = datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M UTC")
    if broken:
        shown = ", ".join(map(str, broken[:5])) + ", ..." * (len(broken) > 5)
        run.notes.append(f"{METRICS} is damaged in line {shown}; these lines are not in this page.")
    run.notes += [f"An earlier damaged file of metrics is kept as {kept.name}." for kept in _damaged(run.directory)]
    if not run.lines:
        missing = "has no lines" if path.exists() else "is missing"
        run.notes.append(f"{METRICS} {missing}: there is nothing to draw over time.")
    elif not run.validations:
        run.notes.append("There is no validation yet: its loss, its accuracy and the use of leaves are not drawn.")
    elif not any(isinstance(line.get("leaf_entropy"), list) for line in run.validations):
        run.notes.append("The validations have no use of leaves: the encoder has no trees with decisions.")


def _damaged(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"{METRICS}.damaged-*"))


def _read_settings(run: Run) -> None:
    path = run.directory / CONFIG
    if not path.is_file():
        run.notes.append(f"{CONFIG} is missing: settings, versions and data are not known from it.")
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    if versions := re.search(r"^# (torch .*)$", text, re.MULTILINE):
        run.comments["versions"] = versions[1]
    if data := re.search(r"^# data: (.*), fingerprint (\S+)$", text, re.MULTILINE):
        run.comments |= {"data": data[1], "fingerprint": data[2]}
    try:
        settings = json.loads(json.dumps(yaml.safe_load(text), default=str))  # a damaged file may contain itself
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        settings = None
    if isinstance(settings, dict):
        run.settings = settings
    else:
        run.notes.append(f"{CONFIG} is damaged: it is not a table of options.")


def _read_starts(run: Run) -> None:
    path, broken = run.directory / STARTS, []
    run.starts = read_starts(path, broken)
    if broken:
        run.notes.append(
            f"{STARTS} is damaged in line {', '.join(map(str, broken))}; these starts are not in this page."
        )
    if not path.exists():
        run.notes.append(f"{STARTS} is missing: the device, and when the run was resumed, are not known.")


def _read_records(run: Run) -> None:
    final = run.directory / FINAL
    run.record = read_record(final, TRAINING_RECORD) if final.is_dir() else None
    if final.is_dir() and run.record is None:
        run.notes.append(f"{FINAL}/ is damaged, or its files were changed.")
    for path in reversed(numbered_checkpoints(run.directory / CHECKPOINTS)):
        try:
            content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            if is_intact(content) and isinstance(content["progress"], dict):
                run.checkpoint = content
                break
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        run.notes.append(f"{CHECKPOINTS}/{path.name} is incomplete or damaged.")


def number(value: Any) -> float | None:
    """A finite number as it is; None for anything else, also for an integer that no float can be."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) <= LARGEST else None


def columns(run: Run) -> dict[str, dict[str, list]]:
    """The metrics for a page: `training` and `validation`, each with a list for each field, None where it is missing.

    Fields that no line has are omitted. `leaves_used` and `leaf_entropy` have a list for each layer.
    """
    training, validations = thin(run.training, "loss"), run.validations
    found = {"training": _columns(training, TRAINING), "validation": _columns(validations, VALIDATION)}
    for name in BY_LAYER:
        lists = [value if isinstance(value := line.get(name), list) else [] for line in validations]
        layers = max(map(len, lists), default=0)
        if layers:
            found["validation"][name] = [
                [number(values[layer]) if layer < len(values) else None for values in lists] for layer in range(layers)
            ]
    return found


def _columns(lines: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, list]:
    values = {name: [number(line.get(name)) for line in lines] for name in (*POSITION, *names)}
    return {name: column for name, column in values.items() if any(value is not None for value in column)}


def thin(lines: list[dict[str, Any]], name: str, most: int = MOST_LINES) -> list[dict[str, Any]]:
    """All lines, or at most `most` of them: the first, the last, and the least and greatest `name` of each interval.

    So peaks stay visible. Lines without the value stay only if their interval has no other.
    """
    if len(lines) <= most:
        return lines
    groups, kept = max(1, most // 2 - 1), {0, len(lines) - 1}
    for group in range(groups):
        start, end = (len(lines) * edge // groups for edge in (group, group + 1))
        values = {index: value for index in range(start, end) if (value := number(lines[index].get(name))) is not None}
        kept |= {min(values, key=lambda i: values[i]), max(values, key=lambda i: values[i])} if values else {start}
    return [lines[index] for index in sorted(kept)]


def facts(run: Run) -> dict[str, str]:
    """The headline figures of a run, by their names; `UNKNOWN` where its files do not have one."""
    last, progress = run.lines[-1] if run.lines else {}, run.progress
    validation = next((v for v in reversed(run.validations) if number(v.get("validation_loss")) is not None), {})
    training = next((t for t in reversed(run.training) if number(t.get("loss")) is not None), {})
    step, tokens, seconds = (_latest(last, progress, name) for name in POSITION)
    rate = tokens / seconds if tokens is not None and seconds else None
    return {
        "state": _state(run, step),
        "feedforward layers": _setting(run, "model", "fff"),
        "validation loss": _shown(validation.get("validation_loss"), "{:.3f} nats"),
        "validation accuracy": _shown(validation.get("validation_accuracy"), "{:.1%}"),
        "training loss": _shown(training.get("loss"), "{:.3f} nats"),
        "unigram entropy": _shown((run.record or {}).get("unigram_entropy"), "{:.3f} nats"),
        "steps": _shown(step, "{:,.0f}"),
        "tokens": _shown(tokens, "{:,.0f}"),
        "time": UNKNOWN if seconds is None else duration(seconds),
        "tokens/s, all included": _shown(rate, "{:,.0f}"),
        "device": _start(run, "device"),
        "precision": _precision(run),
        "backend of the trees": _backends(run),
    }


def _latest(line: dict[str, Any], progress: dict[str, Any], name: str) -> float | None:
    values = [value for source in (line, progress) if (value := number(source.get(name))) is not None]
    return max(values, default=None)


def _state(run: Run, step: float | None) -> str:
    if run.record is not None and (step is None or run.record["step"] >= step):
        return "finished"
    spent = number(run.lines[-1].get("budget_fraction")) if run.lines else None
    budget = "" if spent is None else f", {spent:.0%} of the budget spent"
    written = "" if run.written is None else f" (last line of metrics: {run.written})"
    return f"not finished{budget}; it is running or was stopped{written}"


def _shown(value: Any, layout: str) -> str:
    value = number(value)
    return UNKNOWN if value is None else layout.format(value)


def _setting(run: Run, section: str, name: str) -> str:
    for settings in (run.settings, (run.checkpoint or {}).get("arguments")):
        options = settings.get(section) if isinstance(settings, dict) else None
        if isinstance(options, dict) and name in options:
            return str(options[name])
    return UNKNOWN


def _start(run: Run, name: str) -> str:
    return str(run.starts[-1].get(name, UNKNOWN)) if run.starts else UNKNOWN


def _precision(run: Run) -> str:
    if (recorded := _start(run, "precision")) != UNKNOWN:
        return recorded
    in_bf16 = run.progress.get("in_bf16")
    if isinstance(in_bf16, bool):
        return "bf16" if in_bf16 else "fp32"
    setting = _setting(run, "train", "precision")
    return UNKNOWN if setting == "auto" else setting


def _backends(run: Run) -> str:
    recorded = next((source for source in (*run.starts[-1:], run.progress) if "backends" in source), {})
    backends = recorded.get("backends")
    if isinstance(backends, dict):
        return ", ".join(f"{size}: {backend}" for size, backend in backends.items())
    return "chosen at each call, as on a CPU" if recorded else UNKNOWN


def environment(run: Run) -> dict[str, str]:
    """Versions and data of a run, by their names."""
    record = run.record or run.checkpoint or {}
    return {
        "versions": run.comments.get("versions", UNKNOWN),
        "data": run.comments.get("data") or str((run.checkpoint or {}).get("data_directory", UNKNOWN)),
        "data fingerprint": run.comments.get("fingerprint") or str(record.get("data_fingerprint", UNKNOWN)),
    }


def events(run: Run) -> list[str]:
    """What happened in a run besides training: starts, skipped steps, losses that are not finite; in order."""
    found: list[tuple[float, str]] = []
    for index, start in enumerate(run.starts):
        what = "resumed" if index else "started"
        found.append((start["step"], f"step {start['step']:,}: {what} at {start.get('time', UNKNOWN)}"))
    counts = [(line["step"], skipped) for line in run.training if (skipped := number(line.get("skipped"))) is not None]
    for (before, earlier), (step, skipped) in pairwise([(0, 0), *counts]):
        if skipped > earlier:
            steps = f"{skipped - earlier:,.0f} skipped, because loss or gradient were not finite"
            found.append((step, f"steps {before + 1:,} to {step:,}: {steps}"))
    for line in run.validations:
        if number(line["validation_loss"]) is None:
            text = f"step {line['step']:,}: the validation loss is {line['validation_loss']}"
            found.append((line["step"], text))
    return [text for _, text in sorted(found, key=lambda event: event[0])]


def settings_that_differ(runs: list[Run]) -> list[list[str]]:
    """Rows of a table: each setting that is not the default in some run, the default, and its value in each run."""
    sections = {"model": ModelArguments, "data": DataArguments, "train": TrainArguments}
    defaults: dict[str, Any] = {name: asdict(options()) for name, options in sections.items()}
    defaults = json.loads(json.dumps(defaults | {"seed": 0}))
    changed = []
    for run in runs:
        settings = {
            name: value for name, value in (run.settings or {}).items() if name not in ("output_dir", "resume")
        }
        changed.append(
            {
                name: (default, value)
                for name, (default, value) in changed_settings(defaults, settings).items()
                if value is not None or default is None  # an option that an older run lacks had its default
            }
            if run.settings is not None
            else None
        )
    rows = []
    for name in sorted({name for changes in changed for name in changes or {}}):
        default = next(changes[name][0] for changes in changed if changes and name in changes)
        values = [UNKNOWN if changes is None else changes.get(name, (0, default))[1] for changes in changed]
        rows.append([name, *map(_plain, (default, *values))])
    return rows


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
