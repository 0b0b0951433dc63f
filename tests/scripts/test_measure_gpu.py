"""The script that measures on a GPU uses valid options, resumes, survives failures, and sums up what it found."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.scripts.helpers import load_script
from ultrafastbert.benchmarks.layer import LayerArguments
from ultrafastbert.benchmarks.training import TrainingArguments
from ultrafastbert.cli import parse_arguments

ROOT = Path(__file__).parents[2]
CLASSES = {"layer": LayerArguments, "training": TrainingArguments}
script = load_script("measure_gpu")


@pytest.fixture
def measure(monkeypatch, tmp_path, capsys):
    """Runs the script with programs that do nothing but write results; `fails` says which commands do not."""

    def measure(*options, fails=lambda command: False, seconds=None):
        calls = []

        def run(command, cwd, env):
            assert cwd == ROOT and env["TRITON_INTERPRET"] == "0"
            command = command[1:]
            calls.append(command)
            if fails(command):
                return subprocess.CompletedProcess(command, 1)
            if command[1] != "pytest":
                directory = Path(command[command.index("--output_dir") + 1])
                directory.mkdir(parents=True, exist_ok=True)
                results = [
                    {"name": name, "median": value, "memory": 1e9 * value, "backend": "triton"}
                    for name, value in (seconds or {}).items()
                ]
                record = {"environment": {"device": "a GPU"}, "results": results}
                (directory / f"{command[3]}.json").write_text(json.dumps(record))
            return subprocess.CompletedProcess(command, 0)

        monkeypatch.setattr(script.subprocess, "run", run)
        monkeypatch.setattr(script.sys, "argv", ["measure_gpu.py", "--output_dir", str(tmp_path / "gpu"), *options])
        with pytest.raises(SystemExit) as exit:
            script.main()
        tests, *benchmarks = calls
        assert tests[:2] == ["-m", "pytest"] and (ROOT / tests[-1]).exists()
        return benchmarks, exit.value.code, capsys.readouterr().out

    return measure


def arguments(call):
    module, package, command, name, *options = call
    assert (module, package, command) == ("-m", "ultrafastbert", "benchmark")
    return parse_arguments(CLASSES[name], options)


def test_options_are_valid_and_output_directories_are_those_on_the_page(measure):
    calls, code, _ = measure()
    commands = [arguments(call) for call in calls]
    assert code == 0 and all(options.device == "cuda" for options in commands)
    names = [Path(options.output_dir).name for options in commands]
    page = (ROOT / "docs" / "benchmarks" / "gpu.md").read_text()
    assert len(set(names)) == 8 and all(f"`{name}`" in page for name in names)


def test_complete_benchmarks_are_not_measured_again(measure, tmp_path):
    first, *_ = measure()
    assert measure()[0] == []
    (tmp_path / "gpu" / "one-path" / "layer.json").unlink()
    assert measure()[0] == [call for call in first if call[call.index("--output_dir") + 1].endswith("one-path")]


def test_what_fails_is_listed_and_the_rest_goes_on(measure):
    calls, code, output = measure(fails=lambda command: "pytest" in command or "--one_path" in command)
    assert code == 1 and len(calls) == 8
    assert output.count("\nfailed: python -m") == 3


def test_quick_gives_a_verdict(measure):
    """At the recipe's batch and at the largest that both fit, here 512 sequences."""
    too_large = str(script.BATCHES[0])
    calls, code, output = measure(
        "--quick", "--hidden_size", "96", fails=lambda c: too_large in c, seconds={"dense-3072": 3.0, "1x11": 2.0}
    )
    commands = [arguments(call) for call in calls]
    steps = [options for options in commands if isinstance(options, TrainingArguments)]
    assert [options.sequences for options in steps] == [128, 1024, 512]
    assert all(options.hidden_size == 96 and options.sequence_length == 128 for options in steps)
    assert "the recipe's batch: 1x11 trains 1.50 times as fast as dense-3072 on a GPU (128 sequences of 128" in output
    assert "the largest batch: 1x11 trains 1.50 times as fast as dense-3072 on a GPU (512 sequences" in output
    assert "backend triton, memory 0.67 times)" in output and code == 1  # the largest failed


def test_quick_says_if_there_is_no_verdict(measure):
    *_, output = measure("--quick", seconds={"1x11": 2.0})
    assert "the recipe's batch: dense-3072 and 1x11 could not both be timed" in output
