"""Metrics files that survive a kill, and plots."""

import json
import struct
from pathlib import Path

import pytest
from accelerate import Accelerator

from ultrafastbert.pretraining.curves import plot_runs, tabulate_runs
from ultrafastbert.runs.reporter import Reporter, read_metrics
from ultrafastbert.utils import progress


def write_metrics(directory, steps=(1, 2, 3)):
    directory.mkdir(exist_ok=True)
    lines = [
        {"step": s, "tokens": 1000 * s, "seconds": 60.0 * s, "loss": 3 / s, "tokens_per_second": 50.0}
        | {"validation_loss": 4 / s, "validation_accuracy": 0.5}
        for s in steps
    ]
    lines[-1] |= {"loss": None, "leaf_entropy": [0.5, 0.7], "leaves_used": [0.9, 1.0]}
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def test_resuming_removes_the_lines_of_steps_that_are_repeated(tmp_path):
    path = write_metrics(tmp_path / "run") / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # as a killed run leaves it
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]
    reporter = Reporter(path, step=2, accelerator=Accelerator(cpu=True))
    reporter.metrics({"step": 3, "loss": 9.0})
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]  # on disk at once
    reporter.close()
    assert read_metrics(path)[-1] == {"step": 3, "loss": 9.0}


def test_lines_that_did_not_fit_on_the_disk_are_written_later(tmp_path, monkeypatch, capsys):
    reporter = Reporter(tmp_path / "metrics.jsonl", step=0, accelerator=Accelerator(cpu=True))
    reporter.metrics({"step": 1})
    original = Path.open

    def half_a_line(path, *arguments, **keywords):
        with original(path, *arguments, **keywords) as file:
            file.write('{"st')
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", half_a_line)
    reporter.metrics({"step": 2})
    assert "metrics.jsonl could not be written: [Errno 28]" in capsys.readouterr().out
    monkeypatch.undo()
    reporter.metrics({"step": 3})
    reporter.metrics({"step": 4})
    reporter.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": step} for step in (1, 2, 3, 4)]


def test_plots_are_png_files(tmp_path):
    runs = {"a": write_metrics(tmp_path / "a"), "b": write_metrics(tmp_path / "b")}
    files = plot_runs(runs, tmp_path / "plots", unigram_entropy=3.0)
    assert [file.name for file in files] == ["loss.png", "accuracy.png", "throughput.png", "leaves.png"]
    for file in files:
        signature, width, height = struct.unpack(">8s8xII", file.read_bytes()[:24])
        assert signature == b"\x89PNG\r\n\x1a\n" and width > 500 and height > 300


@pytest.mark.parametrize("steps, minutes", [(3, [1, 2, 3]), (12, range(1, 13)), (37, [4, 7, 10, *range(13, 38, 3)])])
def test_a_table_of_many_validations_has_the_last_and_others_evenly_spaced(tmp_path, steps, minutes):
    run = write_metrics(tmp_path / "run", range(1, steps + 1))
    rows = tabulate_runs({"name": run}).splitlines()[2:]
    assert [row.split(" | ")[:2] for row in rows] == [["| name", f"{minute}.0"] for minute in minutes]


def test_a_run_without_metrics_is_named(tmp_path):
    with pytest.raises(ValueError, match="nothing/metrics.jsonl has no metrics"):
        plot_runs({"a": tmp_path / "nothing"}, tmp_path)


def test_lines_of_version_0_1_have_the_current_names(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "share": 0.5, "batch_rows": 8}\n')
    assert read_metrics(path) == [{"step": 1, "budget_fraction": 0.5, "batch_size": 8}]
    Reporter(path, step=1, accelerator=Accelerator(cpu=True)).close()
    assert path.read_text() == '{"step": 1, "budget_fraction": 0.5, "batch_size": 8}\n'


def test_progress_in_a_file_is_lines_with_the_fraction_of_the_budget(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    reporter = Reporter(tmp_path / "metrics.jsonl", step=0, accelerator=Accelerator(cpu=True))
    reporter.show_progress(0.25, "step 1")
    reporter.say("a message")
    reporter.show_progress(0.5, "step 2")
    reporter.close()
    out, err = capsys.readouterr()
    assert out == "a message\n"
    assert err == " 25% of the budget | step 1\n 50% of the budget | step 2\n"
