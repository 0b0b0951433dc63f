import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.experiments.toy import toy_arguments
from ultrafastbert.experiments.arguments import LayerTrainingArguments
from ultrafastbert.experiments.candidates import Candidate
from ultrafastbert.experiments.images import load_images
from ultrafastbert.experiments.plan import LayerTraining, plan_widths
from ultrafastbert.experiments.processes import run_measurements
from ultrafastbert.utils.errors import Interrupted, UserError


@pytest.fixture(scope="module")
def images():
    return load_images("digits")


@pytest.fixture
def plan(tmp_path):
    return plan_widths(toy_arguments(tmp_path).widths)


def run(plan, images, directory):
    return run_measurements(plan, images, directory / "widths", workers=1, device="cpu")


def outcomes(results):
    return [{name: value for name, value in result.items() if name != "seconds"} for result in results]


def test_results_come_in_order_and_are_kept(images, plan, tmp_path, monkeypatch):
    results = run(plan, images, tmp_path)
    assert [f"{result['run']}.json" for result in results] == [f"widths, {training.file}" for training in plan]
    assert results[0]["settings"]["dataset"] == "digits" and results[0]["settings"]["training"]["lr"] == 0.2
    monkeypatch.setattr(LayerTraining, "measure", None)
    assert run(plan, images, tmp_path) == results


@pytest.mark.usefixtures("sigint")
def test_a_comparison_that_was_stopped_resumes(images, plan, tmp_path, monkeypatch):
    whole = run(plan, images, tmp_path / "whole")
    started, measure = [], LayerTraining.measure

    def interrupt_the_fourth(training, *arguments):
        started.append(training)
        if len(started) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return measure(training, *arguments)

    monkeypatch.setattr(LayerTraining, "measure", interrupt_the_fourth)
    with pytest.raises(
        Interrupted, match=r"stopped by signal 2; 3 of 12 trainings are finished and kept in .*parts/widths"
    ) as info:
        run(plan, images, tmp_path / "parts")
    assert info.value.exit_code == 130
    assert len(list((tmp_path / "parts").rglob("*.json"))) == 3
    rest = run(plan, images, tmp_path / "parts")
    assert started == [*plan[:4], *plan[3:]]
    assert outcomes(rest) == outcomes(whole)


def test_results_of_other_settings_are_refused(images, plan, tmp_path):
    run(plan[:1], images, tmp_path)
    other = LayerTraining(plan[0].layer, 0, LayerTrainingArguments(lr=0.5, epochs=3, patience=3))
    with pytest.raises(UserError, match=r"ff-w8-seed-0.json has .* training.lr was 0.2 and is 0.5. Choose another"):
        run([other], images, tmp_path)


def test_settings_are_compared_before_anything_is_trained(images, plan, tmp_path, monkeypatch):
    run(plan[-1:], images, tmp_path)
    others = [LayerTraining(p.layer, p.seed, LayerTrainingArguments(lr=0.5, epochs=3, patience=3)) for p in plan]
    monkeypatch.setattr(LayerTraining, "measure", None)
    with pytest.raises(UserError, match="training.lr was 0.2 and is 0.5"):
        run(others, images, tmp_path)


def test_divergence_is_reported_and_kept(images, tmp_path, capsys):
    training = LayerTraining(Candidate("ff", 8, 8), 0, LayerTrainingArguments(lr=1e30, epochs=2, patience=2))
    (result,) = run([training], images, tmp_path)
    assert "the loss of epoch 1" in result["diverged"]
    assert "widths, ff-w8-seed-0 diverged" in "".join(capsys.readouterr())


def test_an_error_of_a_training_is_raised(images, tmp_path):
    broken = LayerTraining(Candidate("fff", 8, 16), 0, LayerTrainingArguments())
    with pytest.raises(ValueError, match="depth"):
        run([broken], images, tmp_path)


# several processes


def start_command(output):
    """The command at toy size, but long enough to be stopped, on two processes."""
    options = {"widths.widths": "[8,16]", "widths.leaf_sizes": "[4,2]", "widths.runs": 2, "widths.training.epochs": 60}
    options |= {"experiment": "widths", "workers": 2, "output_dir": str(output)}
    command = [sys.executable, "-m", "ultrafastbert", "compare", *(f"--{name}={options[name]}" for name in options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_results(output, count, process):
    deadline = time.monotonic() + 120
    while len(list(output.rglob("ff*.json"))) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


def children(process):
    """Identifiers of the processes that a process has started."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def workers_of(process):
    """The children that train; the other one is Python's resource tracker."""
    return [pid for pid in children(process) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def wait_until_gone(pids):
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, f"still running: {pids}"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads processes from /proc")
def test_processes_end_with_their_parent_and_the_rest_resumes(images, tmp_path):
    interrupted = start_command(tmp_path)
    wait_for_results(tmp_path, 1, interrupted)
    started = children(interrupted)
    interrupted.send_signal(signal.SIGINT)
    _, messages = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130 and "the same command resumes" in messages
    assert "Traceback" not in messages
    wait_until_gone(started)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("ff*.json")}

    killed = start_command(tmp_path)
    wait_for_results(tmp_path, len(kept) + 1, killed)
    started = children(killed)
    killed.kill()
    killed.communicate()
    wait_until_gone(started)

    section = toy_arguments(tmp_path).widths
    section.training = LayerTrainingArguments(epochs=60)
    plan = plan_widths(section)
    results = run(plan, images, tmp_path / "runs")
    alone = run(plan, images, tmp_path / "alone")
    assert outcomes(results) == outcomes(alone)  # whichever process trained them
    assert all(json.loads(content) for content in kept.values())
    assert all(path.read_bytes() == content for path, content in kept.items())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads processes from /proc")
def test_a_process_that_dies_is_an_error(tmp_path):
    process = start_command(tmp_path)
    wait_for_results(tmp_path, 1, process)
    started = children(process)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 1 and "a process that trained has stopped" in messages
    assert "Traceback" not in messages
    wait_until_gone(started)
