"""The tables of a sweep over tasks and seeds, `glue.json` and `glue.md`, computed from the results of its runs.

Notable:
- the score of a task is the median over seeds; the best run, which papers often report, has its own column;
- averages are those of the papers: one entry for each development set, so MNLI counts twice, and none for WNLI. This
  reproduces the averages that arXiv 2311.10770 prints.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Literal

import numpy as np

from ultrafastbert.finetuning import schema
from ultrafastbert.finetuning.data.glue import TASKS
from ultrafastbert.finetuning.data.predictions import Prediction, write_predictions
from ultrafastbert.finetuning.data.tasks import TaskData
from ultrafastbert.finetuning.schema import Average, Results, RunResult, Score
from ultrafastbert.utils.files import CHECKSUM, write_atomically
from ultrafastbert.utils.tables import markdown_table

PAPER_TITLES = ("RTE", "MRPC", "STS-B", "SST-2", "MNLI-m", "MNLI-mm", "QNLI", "QQP", "CoLA")
"""The development sets that the papers average over, in the order of arXiv 2311.10770, table 1."""

PAPER_COLUMNS = ("RTE", "MRPC", "STS-B", "SST-2", "MNLI", "QNLI", "QQP", "average without CoLA", "CoLA", "average")
PAPER_ROWS = {
    "BERT-base": (66.4, 88.9, 85.8, 93.5, 83.4, 90.5, 71.2, 83.0, 52.1, 79.6),
    "crammedBERT-3072": (58.8, 87.6, 85.2, 91.9, 82.8, 90.4, 89.0, 83.6, 45.0, 79.3),
    "UltraFastBERT-1x11-long": (60.7, 87.5, 86.4, 89.9, 81.3, 89.7, 87.6, 83.0, 35.1, 77.7),
}
"""From arXiv 2311.10770, table 1. CoLA and the last average were not checked against the paper itself; they agree with
its other numbers (see the test of averages)."""


def collect(output: Path, model: str, random_init: bool) -> Results:
    """Combines all results in `output/runs` into the content of `glue.json`.

    Args:
        output: directory of the sweep.
        model: what is fine-tuned, as the option states it.
        random_init: whether its weights were ignored.
    """
    files = (output / schema.RUNS).glob(f"*/*/{schema.RUN_RESULT}")
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    results.sort(key=lambda result: (result["is_trial"], result["seed"], result["lr"]))
    order = [name for name in TASKS if any(result["task"] == name for result in results)]
    order += sorted({result["task"] for result in results} - set(order))
    tasks = {name: [result for result in results if result["task"] == name] for name in order}
    scores: dict[str, Score] = {}
    for runs in tasks.values():
        scores |= _scores(runs)
    path, settings = Path(model), results[0]["settings"] if results else {}
    name = (path.name == "final" and path.parent.name) or path.name
    for result in results:  # stated once instead of in every run
        del result["task"], result["settings"]
        result.pop(CHECKSUM, None)
    return {
        "format": schema.FORMAT,
        "name": f"{name}, random weights" if random_init else name,
        "model": model,
        "settings": {key: value for key, value in settings.items() if key != "model_fingerprint"},
        "model_fingerprint": settings.get("model_fingerprint"),
        "parameters": max((result["parameters"] for result in results), default=None),
        "scores": scores,
        "averages": _averages(scores),
        "tasks": tasks,
    }


def _scores(runs: list[RunResult]) -> dict[str, Score]:
    """The scores of a task's development sets; {} if no run has evaluated them."""
    runs = [run for run in runs if "evaluations" in run]
    scores: dict[str, Score] = {}
    for title in runs[0].get("evaluations", {}) if runs else ():
        metric, values = runs[0]["metric"], [run.get("evaluations", {})[title]["values"] for run in runs]
        primary = [value[metric] for value in values]
        scores[title] = {
            "metric": metric,
            "data_fingerprint": runs[0]["data_fingerprint"],
            "values": primary,
            "median": median(primary),
            "minimum": min(primary),
            "maximum": max(primary),
            "standard_deviation": stdev(primary) if len(primary) > 1 else None,
            "other": {name: median(value[name] for value in values) for name in values[0] if name != metric},
        }
    return scores


def _averages(scores: dict[str, Score]) -> dict[str, Average]:
    """Means over the development sets that have scores; those of the papers are without WNLI."""
    of = [title for title in PAPER_TITLES if title in scores]
    titles = {"average": of}
    if "CoLA" in of:
        titles["average without CoLA"] = [title for title in of if title != "CoLA"]
    if "WNLI" in scores:
        titles["average with WNLI"] = [*of, "WNLI"]
    return {
        label: {
            "of": of,
            "median": mean(scores[title]["median"] for title in of),
            "best": mean(scores[title]["maximum"] for title in of),
        }
        for label, of in titles.items()
        if of
    }


def write_report(output: Path, results: Results, data: dict[str, TaskData]) -> dict[str, Path]:
    """Writes `glue.json`, `glue.md` and, for the tasks in `data`, `predictions/`.

    The predictions for a test set are those of the run with the best score on the development set.

    Args:
        output: directory of the sweep.
        results: from `collect`.
        data: the examples of tasks, by name.

    Returns:
        The paths of the `results`, the `table` and, if there are any, the `predictions`.
    """
    files = {"results": output / schema.RESULTS, "table": output / schema.TABLE}
    notes = []
    predictions, sources = _best_predictions(output, results, data)
    if predictions:
        files["predictions"] = output / schema.PREDICTIONS
        missing = write_predictions(files["predictions"], predictions)
        best = ", ".join(sources)
        notes.append(f"`{schema.PREDICTIONS}/` holds the run that is best on the development set: {best}.")
        if missing:
            notes.append(f"A submission to the benchmark also needs {', '.join(missing)}.")
    write_atomically(files["results"], json.dumps(results, indent=1) + "\n")
    write_atomically(files["table"], render_report(results, notes))
    return files


def _best_predictions(output: Path, results: Results, data: dict[str, TaskData]) -> tuple[list[Prediction], list[str]]:
    predictions, sources = [], []
    for name, task_data in data.items():
        runs = [run for run in results["tasks"].get(name, ()) if "evaluations" in run]
        if not runs or not task_data.tests:
            continue
        best = max(runs, key=_mean_score)  # of equals, the first
        sources.append(f"{name} seed {best['seed']}")
        for split in task_data.tests:
            values = np.load(output / schema.RUNS / name / f"seed-{best['seed']}" / f"{split.title}.npy")
            predictions.append(Prediction(task_data.task, split, values.tolist()))
    return predictions, sources


def _mean_score(run: RunResult) -> float:
    return mean(evaluation["values"][run["metric"]] for evaluation in run.get("evaluations", {}).values())


def render_report(results: Results, notes: Sequence[str] = ()) -> str:
    """The content of `glue.md`: the scores, the papers' scores beside them, and remarks, followed by `notes`."""
    spread, other = "minimum to maximum", "other metrics, median"
    header = ("development set", "metric", "median", spread, "best run", other, "seeds")
    rows = []
    for title, score in results["scores"].items():
        spread = f"{_percent(score['minimum'])} to {_percent(score['maximum'])}"
        other = ", ".join(f"{name} {_percent(value)}" for name, value in score["other"].items())
        middle, best = _percent(score["median"]), _percent(score["maximum"])
        rows.append((title, score["metric"], middle, spread, best, other, len(score["values"])))
    for label, average in results["averages"].items():
        middle, best = _percent(average["median"]), _percent(average["best"])
        rows.append((f"{label} (of {len(average['of'])})", "", middle, "", best, "", ""))
    lines = [f"# {results['name']}", "", _describe(results), "", markdown_table(header, rows), ""]
    lines += ["All scores are times 100. *Best run* is the best seed, chosen on the development set itself.", ""]
    if any(title in results["scores"] for title in PAPER_TITLES):
        lines += _beside_papers(results)
    lines += [f"- {note}" for note in [*_remarks(results), *notes]]
    return "\n".join(lines).rstrip() + "\n"


def _describe(results: Results) -> str:
    settings = results["settings"]
    if not settings:
        return "No run has finished."
    rates = settings["lr_sweep"]
    rate = f"the best of {rates} on held-out training examples" if rates else settings["lr"]
    environments = {
        ", ".join(f"{name} {value}" for name, value in run["environment"].items())
        for runs in results["tasks"].values()
        for run in runs
    }
    return (
        f"`{results['model']}`{' with random weights' if settings['random_init'] else ''},"
        f" {(results['parameters'] or 0) / 1e6:.1f} million parameters. Epochs: {settings['epochs']}, batch"
        f" {settings['batch_size']}, learning rate {rate}, warm-up {settings['warmup']:.0%}, dropout"
        f" {settings['dropout']}, at most {settings['max_length']} tokens; all settings are in `{schema.RESULTS}`."
        f" {'; '.join(sorted(environments))}."
    )


def _beside_papers(results: Results) -> list[str]:
    """The model's scores above those of the paper."""
    scores, averages = results["scores"], results["averages"]
    is_complete = all(title in scores for title in PAPER_TITLES)

    def row(label: str, of_scores: Literal["median", "maximum"], of_averages: Literal["median", "best"]) -> list[str]:
        cells = {title: _percent(score[of_scores]) for title, score in scores.items()}
        if is_complete:
            cells |= {name: _percent(average[of_averages]) for name, average in averages.items()}
        cells["MNLI"] = f"{cells.get('MNLI-m', '–')} / {cells.get('MNLI-mm', '–')}"
        return [f"**{results['name']}**, {label}", *(cells.get(column, "–") for column in PAPER_COLUMNS)]

    rows = [row("median", "median", "median"), row("best run", "maximum", "best")]
    table = markdown_table(("", *PAPER_COLUMNS), [*rows, *((name, *values) for name, values in PAPER_ROWS.items())])
    text = (
        "The scores are F1 for MRPC and QQP, Spearman's correlation for STS-B, Matthews' for CoLA, and accuracy for"
        " the others. Averages include both parts of MNLI and exclude WNLI. The paper's scores are of best runs, and"
        " those of BERT-base are on the test sets."
    )
    text += "" if is_complete else " Averages are shown only if all of these sets have scores."
    return [f"Compared with [arXiv 2311.10770](https://arxiv.org/abs/2311.10770), table 1:\n\n{table}\n\n{text}\n"]


def _remarks(results: Results) -> list[str]:
    """Warnings, lines that were skipped, truncated examples, runs that diverged, chosen learning rates."""
    remarks, settings = [], results["settings"]
    for name, runs in results["tasks"].items():
        remarks += [f"{name}: {note}" for note in runs[0]["notes"]]
        truncated = [f"{n:,} of {runs[0]['rows'][split]:,} {split}" for split, n in runs[0]["truncated"].items()]
        if truncated:
            limit = f"{settings['max_length']} tokens"
            remarks.append(f"{name}: examples longer than {limit} were truncated: {', '.join(truncated)}.")
        for run in runs:
            if "diverged" in run:
                remarks.append(f"{run['run']} diverged and has no score: {run['diverged']}.")
            for evaluation in run.get("evaluations", {}).values():
                remarks += [f"{run['run']}: {warning}." for warning in evaluation["warnings"]]
        if settings["lr_sweep"]:
            for lr in sorted({run["lr"] for run in runs if not run["is_trial"]}):
                remarks.append(f"{name}: learning rate {lr:g} was best on held-out training examples.")
    return remarks


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
