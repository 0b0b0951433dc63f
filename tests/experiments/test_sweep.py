import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.experiments.toy import toy_arguments
from ultrafastbert.experiments import sweep
from ultrafastbert.experiments.arguments import Recipe
from ultrafastbert.experiments.candidates import Layer
from ultrafastbert.experiments.images import load_images
from ultrafastbert.experiments.plan import Run, plan_runs
from ultrafastbert.experiments.sweep import make_runs, read_result
from ultrafastbert.utils.errors import Interrupted, UserError


@pytest.fixture(scope="module")
def images():
    return load_images("digits")


@pytest.fixture
def runs(tmp_path):
    return plan_runs("widths", toy_arguments(tmp_path))


def outcomes(results):
    return [{name: value for name, value in result.items() if name != "seconds"} for result in results]


def test_results_come_in_order_and_are_kept(images, runs, tmp_path, monkeypatch):
    results = make_runs(runs, images, tmp_path, 1, "cpu")
    assert [result["run"] for result in results] == [str(run) for run in runs]
    assert results[0]["settings"]["dataset"] == "digits" and results[0]["settings"]["training"]["lr"] == 0.2
    monkeypatch.setattr(Run, "make", None)
    assert make_runs(runs, images, tmp_path, 1, "cpu") == results


def test_a_sweep_that_was_stopped_goes_on_with_the_rest(images, runs, tmp_path, monkeypatch):
    whole = make_runs(runs, images, tmp_path / "whole", 1, "cpu")
    made, make = [], Run.make

    def make_some(run, *arguments):
        made.append(str(run))
        if len(made) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return make(run, *arguments)

    monkeypatch.setattr(Run, "make", make_some)
    with pytest.raises(
        Interrupted, match=r"stopped by signal 2; 3 of 12 runs of widths are finished and kept"
    ) as info:
        make_runs(runs, images, tmp_path / "parts", 1, "cpu")
    assert info.value.exit_code == 130
    assert len(list((tmp_path / "parts").rglob("*.json"))) == 3
    rest = make_runs(runs, images, tmp_path / "parts", 1, "cpu")
    assert made == [str(run) for run in [*runs[:4], *runs[3:]]]
    assert outcomes(rest) == outcomes(whole)


def test_results_of_other_settings_are_refused(images, runs, tmp_path):
    make_runs(runs[:1], images, tmp_path, 1, "cpu")
    other = Run("widths", runs[0].layer, 0, Recipe(lr=0.5, epochs=3, patience=3))
    with pytest.raises(UserError, match=r"ff-w8-seed-0.json is .* training.lr was 0.2 and is 0.5. Choose another"):
        make_runs([other], images, tmp_path, 1, "cpu")


def test_a_file_that_is_no_result_is_named(tmp_path):
    path = tmp_path / "result.json"
    for content in ("{", "[]", "{}", '{"settings": 3}'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"result.json is not the result of a run"):
            read_result(path, {})
    assert read_result(tmp_path / "missing.json", {}) is None


def test_divergence_is_named_and_kept(images, tmp_path, capsys):
    run = Run("widths", Layer("ff", 8, 8), 0, Recipe(lr=1e30, epochs=2, patience=2))
    (result,) = make_runs([run], images, tmp_path, 1, "cpu")
    assert "the loss of epoch 1" in result["diverged"]
    assert "widths, ff-w8, seed 0 diverged" in "".join(capsys.readouterr())


def test_an_error_of_a_run_is_not_swallowed(images, tmp_path):
    broken = Run("widths", Layer("fff", 8, 16), 0, Recipe())
    with pytest.raises(ValueError, match="depth"):
        make_runs([broken], images, tmp_path, 1, "cpu")


def test_a_full_disk_is_an_error_that_names_the_file(images, runs, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sweep, "write_atomically", full)
    with pytest.raises(UserError, match=r"ff-w8-seed-0.json cannot be written: .*No space left"):
        make_runs(runs[:1], images, tmp_path, 1, "cpu")


# several processes


def start_script(output):
    """The script at toy size, but long enough to be stopped, on two processes."""
    options = {"widths.widths": "[8,16]", "widths.leaf_sizes": "[4,2]", "widths.runs": 2, "widths.training.epochs": 60}
    options |= {"experiment": "widths", "workers": 2, "output_dir": output}
    command = [
        sys.executable,
        "-m",
        "ultrafastbert",
        "compare",
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_results(output, count, process):
    deadline = time.monotonic() + 120
    while len(list(output.rglob("ff*.json"))) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


def children(process):
    """Identifiers of the processes that a process has started."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_until_gone(pids):
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, f"still there: {pids}"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_processes_end_with_their_parent_and_others_go_on(images, tmp_path):
    interrupted = start_script(tmp_path)
    wait_for_results(tmp_path, 1, interrupted)
    workers = children(interrupted)
    interrupted.send_signal(signal.SIGINT)
    _, messages = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130 and "the same command goes on" in messages
    assert "Traceback" not in messages
    wait_until_gone(workers)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("ff*.json")}

    killed = start_script(tmp_path)
    wait_for_results(tmp_path, len(kept) + 1, killed)
    workers = children(killed)
    killed.kill()
    killed.communicate()
    wait_until_gone(workers)

    arguments = toy_arguments(tmp_path)
    arguments.widths.training = Recipe(epochs=60)
    results = make_runs(plan_runs("widths", arguments), images, tmp_path, 1, "cpu")
    alone = make_runs(plan_runs("widths", arguments), images, tmp_path / "alone", 1, "cpu")
    assert outcomes(results) == outcomes(alone)  # whatever process made them
    assert all(json.loads(content) for content in kept.values())
    assert all(path.read_bytes() == content for path, content in kept.items())
