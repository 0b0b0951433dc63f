"""The script that measures all rows of docs/benchmarks/gpu.md uses valid options, and resumes."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from ultrafastbert.benchmarks.layer import LayerArguments
from ultrafastbert.benchmarks.training import TrainingArguments
from ultrafastbert.cli import parse_arguments

ROOT = Path(__file__).parents[2]
CLASSES = {"layer": LayerArguments, "training": TrainingArguments}


@pytest.fixture
def measure(tmp_path):
    """Runs the script with a `python` that records its arguments and writes an empty result."""
    log, bin = tmp_path / "calls", tmp_path / "bin"
    bin.mkdir()
    fake = bin / "python"
    fake.write_text(
        "#!/usr/bin/env bash\n"
        f'printf "%q " "$@" >> {log}; echo >> {log}\n'
        "[ $2 != pytest ] || exit 0\n"  # the tests, which pass
        'while [ "$1" != --output_dir ]; do shift; done\n'
        'mkdir -p "$2" && touch "$2/layer.json" "$2/training.json"\n'
    )
    fake.chmod(0o755)

    def measure():
        log.write_text("")
        environment = os.environ | {"PATH": f"{bin}:{os.environ['PATH']}"}
        command = ["bash", ROOT / "scripts" / "measure_gpu.sh", tmp_path / "gpu"]
        subprocess.run(command, env=environment, check=True)
        tests, *calls = [shlex.split(line) for line in log.read_text().splitlines()]
        assert tests[:2] == ["-m", "pytest"] and (ROOT / tests[-1]).exists()
        return calls

    return measure


def arguments(call):
    module, package, command, name, *options = call
    assert (module, package, command) == ("-m", "ultrafastbert", "benchmark")
    return parse_arguments(CLASSES[name], options)


def test_options_are_valid_and_output_directories_are_those_on_the_page(measure):
    commands = [arguments(call) for call in measure()]
    assert all(options.device == "cuda" for options in commands)
    names = [Path(options.output_dir).name for options in commands]
    page = (ROOT / "docs" / "benchmarks" / "gpu.md").read_text()
    assert len(set(names)) == 8 and all(f"`{name}`" in page for name in names)


def test_complete_benchmarks_are_not_measured_again(measure, tmp_path):
    first = measure()
    assert measure() == []
    (tmp_path / "gpu" / "one-path" / "layer.json").unlink()
    assert measure() == [call for call in first if call[call.index("--output_dir") + 1].endswith("one-path")]
