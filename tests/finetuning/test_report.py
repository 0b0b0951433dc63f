"""Tables of medians, spreads and averages over runs, and predictions of the best run."""

import json
from statistics import mean

import numpy as np
import pytest

from ultrafastbert.finetuning.data.tasks import Split, Task, TaskData
from ultrafastbert.finetuning.report import PAPER_ROWS, PAPER_TITLES, collect, render_report, write_report

SETTINGS = {"epochs": 5, "batch_size": 16, "lr": 4e-5, "lr_sweep": None, "warmup": 0.1, "dropout": 0.1}
SETTINGS |= {"max_length": 128, "random_init": False}
TITLES = {"rte": ["RTE"], "mnli": ["MNLI-m", "MNLI-mm"], "sst2": ["SST-2"], "mrpc": ["MRPC"], "stsb": ["STS-B"]}
TITLES |= {"qqp": ["QQP"], "qnli": ["QNLI"], "cola": ["CoLA"], "wnli": ["WNLI"]}


def write_run(output, task, seed, values, **changes):
    """Writes the result of a run with `values` for the task's development sets."""
    directory = output / "runs" / task / f"seed-{seed}"
    directory.mkdir(parents=True)
    result = {"run": f"{task}, seed {seed}", "task": task, "metric": "accuracy", "seed": seed, "lr": 4e-5}
    result |= {"is_trial": False, "settings": SETTINGS, "data_fingerprint": "x", "rows": {"train": 1000}, "notes": []}
    result |= {"truncated": {}, "new_weights": [], "parameters": 2_000_000, "environment": {"device": "cpu"}}
    titles = TITLES.get(task, [task])
    result["evaluations"] = {
        title: {"values": {"f1": value / 2, "accuracy": value}, "warnings": []}
        for title, value in zip(titles, values, strict=True)
    }
    (directory / "result.json").write_text(json.dumps(result | changes))
    return directory


def test_median_spread_and_best(tmp_path):
    for seed, value in enumerate([0.5, 0.9, 0.6]):
        write_run(tmp_path, "rte", seed, [value])
    results = collect(tmp_path, "out/small/final", False)
    score = results["scores"]["RTE"]
    assert score["values"] == [0.5, 0.9, 0.6] and score["metric"] == "accuracy"
    assert (score["minimum"], score["median"], score["maximum"]) == (0.5, 0.6, 0.9)
    assert score["standard_deviation"] == pytest.approx(np.std([0.5, 0.9, 0.6], ddof=1))
    assert score["other"] == {"f1": 0.3}
    assert results["name"] == "small"
    assert "| RTE | accuracy | 60.0 | 50.0 to 90.0 | 90.0 | f1 30.0 | 3 |" in render_report(results)


def test_averages_are_defined_as_in_the_papers(tmp_path):
    """MNLI counts twice and WNLI not at all."""
    generator = np.random.default_rng(0)
    for task, titles in TITLES.items():
        for seed in range(3):
            write_run(tmp_path, task, seed, generator.random(len(titles)).tolist())
    results = collect(tmp_path, "m", False)
    scores, averages = results["scores"], results["averages"]
    assert set(averages["average"]["of"]) == set(PAPER_TITLES) == set(scores) - {"WNLI"}
    assert averages["average"]["median"] == pytest.approx(mean(scores[title]["median"] for title in PAPER_TITLES))
    assert averages["average"]["best"] == pytest.approx(mean(scores[title]["maximum"] for title in PAPER_TITLES))
    assert len(averages["average without CoLA"]["of"]) == 8 and len(averages["average with WNLI"]["of"]) == 10

    table = render_report(results)
    row = next(line for line in table.splitlines() if line.startswith("| **m**, median"))
    mnli = f"{100 * scores['MNLI-m']['median']:.1f} / {100 * scores['MNLI-mm']['median']:.1f}"
    cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
    assert cells[4] == mnli and len(cells) == 10
    assert cells[-3] == f"{100 * averages['average without CoLA']['median']:.1f}"
    assert cells[-1] == f"{100 * averages['average']['median']:.1f}"
    assert cells[-2] == f"{100 * scores['CoLA']['median']:.1f}"


@pytest.mark.parametrize("name", PAPER_ROWS)
def test_the_papers_averages_count_mnli_twice(name):
    """For the part of MNLI that the paper does not print, both averages imply about the score of the other part."""
    *tasks, without_cola, cola, average = PAPER_ROWS[name]
    without = 8 * without_cola - sum(tasks)
    assert without == pytest.approx(tasks[4], abs=1.5)
    assert (sum(tasks) + without + cola) / 9 == pytest.approx(average, abs=0.06)


def test_some_of_the_tasks_have_no_average_beside_the_papers(tmp_path):
    write_run(tmp_path, "rte", 0, [0.5], settings=SETTINGS | {"random_init": True})
    table = render_report(collect(tmp_path, "m", True))
    assert "| **m, random weights**, median | 50.0 | – | – | – | – / – | – | – | – | – | – |" in table
    assert "average without CoLA (" not in table and "`m` with random weights" in table


def test_remarks_name_warnings_skipped_lines_truncation_and_divergence(tmp_path):
    warned = {"RTE": {"values": {"accuracy": 0.5}, "warnings": ["predictions are class 0 in all examples (277)"]}}
    write_run(tmp_path, "rte", 0, [0.5], evaluations=warned, truncated={"train": 12}, notes=["3 lines were skipped"])
    directory = write_run(tmp_path, "rte", 1, [0.5])
    result = json.loads((directory / "result.json").read_text()) | {"diverged": "the loss of an epoch is nan"}
    del result["evaluations"]
    (directory / "result.json").write_text(json.dumps(result))
    table = render_report(collect(tmp_path, "m", False))
    assert "- rte: 3 lines were skipped" in table
    assert "- rte: examples longer than 128 tokens were truncated: 12 of 1,000 train." in table
    assert "- rte, seed 0: predictions are class 0 in all examples (277)." in table
    assert "- rte, seed 1 diverged and has no score: the loss of an epoch is nan." in table
    assert collect(tmp_path, "m", False)["scores"]["RTE"]["values"] == [0.5]


def test_predictions_are_those_of_the_best_run(tmp_path):
    task = Task("rte", ("entailment", "not_entailment"), "accuracy_f1", "accuracy")
    test = Split("RTE", [("a", "b")] * 3, None, ["0", "1", "2"])
    data = TaskData(task, test, [test], [test])
    for seed, value in enumerate([0.5, 0.9, 0.9]):
        directory = write_run(tmp_path, "rte", seed, [value])
        np.save(directory / "RTE.npy", np.array([seed == 1, seed == 2, 1]).astype(int))
    files = write_report(tmp_path, collect(tmp_path, "m", False), {"rte": data})
    written = (files["predictions"] / "RTE.tsv").read_text().split()
    assert written[2:] == ["0", "not_entailment", "1", "entailment", "2", "not_entailment"]
    table = files["table"].read_text()
    assert "best on the development set: rte seed 1." in table
    assert "A submission to the benchmark also needs CoLA, SST-2" in table


def test_a_table_without_finished_runs(tmp_path):
    assert "No run has finished." in render_report(collect(tmp_path, "m", False))
