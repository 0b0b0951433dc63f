"""The tables of a sweep over tasks and seeds, made anew from the results of its runs: `glue.json` and `glue.md`.

Notable:
- the figure of a task is the median over seeds; the best run, which is what papers often report, is named as such;
- averages are those of the papers: one entry for each development set, so MNLI counts twice, and none for WNLI. That
  reproduces the averages that arXiv 2311.10770 prints.
"""

import json
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np

from ultrafastbert.finetuning.data.glue import TASKS
from ultrafastbert.finetuning.data.predictions import Prediction, write_predictions
from ultrafastbert.finetuning.data.tasks import TaskData
from ultrafastbert.utils.files import write_atomically

FORMAT = 1

PAPER_TITLES = ("RTE", "MRPC", "STS-B", "SST-2", "MNLI-m", "MNLI-mm", "QNLI", "QQP", "CoLA")
"""The development sets that the papers average over, in the order of arXiv 2311.10770, table 1."""

PAPER_ROWS = {
    "BERT-base": (66.4, 88.9, 85.8, 93.5, 83.4, 90.5, 71.2, 83.0, 52.1, 79.6),
    "crammedBERT-3072": (58.8, 87.6, 85.2, 91.9, 82.8, 90.4, 89.0, 83.6, 45.0, 79.3),
    "UltraFastBERT-1x11-long": (60.7, 87.5, 86.4, 89.9, 81.3, 89.7, 87.6, 83.0, 35.1, 77.7),
}
"""From arXiv 2311.10770, table 1: RTE, MRPC, STS-B, SST-2, MNLI, QNLI, QQP, average without CoLA, CoLA, average. The
last two were not compared with the paper itself; they agree with its other figures (see the test of averages)."""


def collect(output: Path, model: str, random_init: bool) -> dict:
    """The content of `glue.json`, from all results in `output/runs`.

    Args:
        output: directory of the sweep.
        model: what was fine-tuned, as it was given.
        random_init: whether its weights were left out.

    Returns:
        `format`; `name`, `model` and `model_fingerprint`; `settings`; `parameters`; `tasks`, each with all that its
        runs' `result.json` say; `scores`, by title of a development set (`MNLI-m`) the task's primary metric:
        `metric`, `data_fingerprint` of the task's rows, `values` of the seeds, `median`, `minimum`, `maximum`,
        `standard_deviation` (None for one seed) and the median of the `other` metrics; `averages`, by label `of` which
        titles, their `median` (mean of the medians) and `best` (mean of the best runs).
    """
    results = [json.loads(path.read_text(encoding="utf-8")) for path in (output / "runs").glob("*/*/result.json")]
    results.sort(key=lambda result: (result["is_trial"], result["seed"], result["lr"]))
    order = [name for name in TASKS if any(result["task"] == name for result in results)]
    order += sorted({result["task"] for result in results} - set(order))
    tasks = {name: [result for result in results if result["task"] == name] for name in order}
    scores = {}
    for runs in tasks.values():
        scores |= _scores([run for run in runs if "evaluations" in run])
    path, settings = Path(model), results[0]["settings"] if results else {}
    name = (path.name == "final" and path.parent.name) or path.name
    return {
        "format": FORMAT,
        "name": f"{name}, random weights" if random_init else name,
        "model": model,
        "settings": {key: value for key, value in settings.items() if key != "model_fingerprint"},
        "model_fingerprint": settings.get("model_fingerprint"),
        "parameters": max((result["parameters"] for result in results), default=None),
        "scores": scores,
        "averages": _averages(scores),
        "tasks": {name: _without_settings(runs) for name, runs in tasks.items()},
    }


def _scores(runs: list[dict]) -> dict:
    """The summary of a task's development sets over seeds; {} without runs."""
    scores = {}
    for title in runs[0]["evaluations"] if runs else ():
        metric, values = runs[0]["metric"], [run["evaluations"][title]["values"] for run in runs]
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


def _averages(scores: dict) -> dict:
    """Means over the development sets that there are; those of the papers leave out WNLI."""
    titles = {
        "average": [title for title in PAPER_TITLES if title in scores],
        "average without CoLA": [title for title in PAPER_TITLES if title in scores and title != "CoLA"],
        "average with WNLI": [title for title in (*PAPER_TITLES, "WNLI") if title in scores],
    }
    if "WNLI" not in scores:
        del titles["average with WNLI"]
    return {
        label: {
            "of": of,
            "median": mean(scores[title]["median"] for title in of),
            "best": mean(scores[title]["maximum"] for title in of),
        }
        for label, of in titles.items()
        if of and (label == "average" or of != titles["average"])
    }


def _without_settings(runs: list[dict]) -> list[dict]:
    """The runs without what all of them share and the file states once."""
    return [{name: value for name, value in run.items() if name not in ("task", "settings")} for run in runs]


def write_report(output: Path, results: dict, data: dict[str, TaskData]) -> dict[str, Path]:
    """Writes `glue.json`, `glue.md` and, for the tasks whose rows are given, `predictions/`.

    A test set's predictions are those of the run that is best on the development set.

    Args:
        output: directory of the sweep.
        results: from `collect`.
        data: the rows of tasks, by name.

    Returns:
        The paths of the `results`, the `table` and, with rows, the `predictions`.
    """
    files = {"results": output / "glue.json", "table": output / "glue.md"}
    notes = []
    predictions, sources = _best_predictions(output, results, data)
    if predictions:
        files["predictions"] = output / "predictions"
        missing = write_predictions(files["predictions"], predictions)
        notes.append(f"`predictions/` holds the run that is best on the development set: {', '.join(sources)}.")
        if missing:
            notes.append(f"A submission to the benchmark needs {', '.join(missing)} besides.")
    write_atomically(files["results"], json.dumps(results, indent=1) + "\n")
    write_atomically(files["table"], render(results, notes))
    return files


def _best_predictions(output: Path, results: dict, data: dict[str, TaskData]) -> tuple[list[Prediction], list[str]]:
    predictions, sources = [], []
    for name, rows in data.items():
        runs = [run for run in results["tasks"].get(name, ()) if "evaluations" in run]
        if not runs or not rows.tests:
            continue
        best = max(runs, key=_mean_score)  # of equals, the first
        sources.append(f"{name} seed {best['seed']}")
        for split in rows.tests:
            values = np.load(output / "runs" / name / f"seed-{best['seed']}" / f"{split.title}.npy")
            predictions.append(Prediction(rows.task, split, values.tolist()))
    return predictions, sources


def _mean_score(run: dict) -> float:
    return mean(split["values"][run["metric"]] for split in run["evaluations"].values())


# the table


def render(results: dict, notes: list[str] = ()) -> str:
    """`glue.md`: the table of tasks, the row among the papers', and what else a reader should know."""
    scores = results["scores"]
    lines = [f"# {results['name']}", "", _describe(results), ""]
    lines += ["| development set | metric | median | minimum to maximum | best run | other metrics, median | seeds |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for title, score in scores.items():
        other = ", ".join(f"{name} {_percent(value)}" for name, value in score["other"].items())
        spread = f"{_percent(score['minimum'])} to {_percent(score['maximum'])}"
        lines.append(
            f"| {title} | {score['metric']} | {_percent(score['median'])} | {spread} | {_percent(score['maximum'])}"
            f" | {other} | {len(score['values'])} |"
        )
    for label, average in results["averages"].items():
        lines.append(
            f"| {label} (of {len(average['of'])}) | | {_percent(average['median'])} | |"
            f" {_percent(average['best'])} | | |"
        )
    lines += ["", "All figures are times 100. *Best run* is the best of the seeds on the development set itself.", ""]
    if any(title in scores for title in PAPER_TITLES):
        lines += _beside_papers(results)
    lines += [f"- {note}" for note in [*_remarks(results), *notes]]
    return "\n".join(lines).rstrip() + "\n"


def _describe(results: dict) -> str:
    settings = results["settings"]
    if not settings:
        return "No run is finished."
    rate = f"the best of {settings['lr_sweep']} on held-out training rows" if settings["lr_sweep"] else settings["lr"]
    environments = {
        ", ".join(f"{name} {value}" for name, value in run["environment"].items())
        for runs in results["tasks"].values()
        for run in runs
    }
    return (
        f"`{results['model']}`{' with random weights' if settings['random_init'] else ''},"
        f" {results['parameters'] / 1e6:.1f} million parameters. Epochs: {settings['epochs']}, batch"
        f" {settings['batch_size']}, learning rate {rate}, warm-up {settings['warmup']:.0%}, dropout"
        f" {settings['dropout']}, at most {settings['max_length']} tokens; all settings are in `glue.json`."
        f" {'; '.join(sorted(environments))}."
    )


def _beside_papers(results: dict) -> list[str]:
    """The model's rows above those of the paper."""
    scores, averages = results["scores"], results["averages"]
    is_whole = all(title in scores for title in PAPER_TITLES)

    def row(name: str, value) -> str:
        cells = []
        for title in PAPER_TITLES:
            cell = value(scores[title]) if title in scores else "–"
            if title == "MNLI-mm":
                cells[-1] += f" / {cell}"
            else:
                cells.append(cell)
            if title == "QQP":
                cells.append(value(averages["average without CoLA"]) if is_whole else "–")
        cells.append(value(averages["average"]) if is_whole else "–")
        return f"| {' | '.join([name, *cells])} |"

    def best(score):
        return _percent(score["best" if "best" in score else "maximum"])

    header = ["", "RTE", "MRPC", "STS-B", "SST-2", "MNLI", "QNLI", "QQP", "average without CoLA", "CoLA", "average"]
    lines = ["Beside the figures of [arXiv 2311.10770](https://arxiv.org/abs/2311.10770), table 1:", ""]
    lines += [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    lines += [row(f"**{results['name']}**, median", lambda score: _percent(score["median"]))]
    lines += [row(f"**{results['name']}**, best run", best)]
    lines += [f"| {' | '.join([name, *map(str, values)])} |" for name, values in PAPER_ROWS.items()]
    text = (
        "F1 for MRPC and QQP, Spearman's correlation for STS-B, Matthews' for CoLA, accuracy for the others; averages"
        " count both parts of MNLI and leave out WNLI. The paper's figures are of best runs, and BERT-base's are of"
        " the test sets."
    )
    return [*lines, "", text + ("" if is_whole else " Here they are given for all of these sets only."), ""]


def _remarks(results: dict) -> list[str]:
    """Warnings, rows left out or cut, runs that diverged, learning rates that were chosen."""
    remarks = []
    for name, runs in results["tasks"].items():
        remarks += [f"{name}: {note}" for note in runs[0]["notes"]]
        rows, truncated = runs[0]["rows"], runs[0]["truncated"]
        if truncated:
            cut = ", ".join(f"{count:,} of {rows[split]:,} {split}" for split, count in truncated.items())
            remarks.append(f"{name}: rows longer than {results['settings']['max_length']} tokens were cut: {cut}.")
        for run in runs:
            if "diverged" in run:
                remarks.append(f"{run['run']} diverged and has no score: {run['diverged']}.")
            for split in run.get("evaluations", {}).values():
                remarks += [f"{run['run']}: {warning}." for warning in split["warnings"]]
        if results["settings"]["lr_sweep"]:
            chosen = {run["lr"] for run in runs if not run["is_trial"]}
            remarks += [f"{name}: learning rate {lr:g} was best on held-out training rows." for lr in sorted(chosen)]
    return remarks


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
