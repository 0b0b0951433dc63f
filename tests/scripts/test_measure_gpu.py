"""The command that measures all of docs/benchmarks/gpu.md knows the benchmarks, and goes on where it stopped."""

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
    """Runs the command with a `python` that writes down how it was called and leaves an empty result."""
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


def test_every_benchmark_knows_its_options_and_writes_where_the_page_says(measure):
    made = [arguments(call) for call in measure()]
    assert all(options.device == "cuda" for options in made)
    names = [Path(options.output_dir).name for options in made]
    page = (ROOT / "docs" / "benchmarks" / "gpu.md").read_text()
    assert len(set(names)) == 8 and all(f"`{name}`" in page for name in names)


def test_what_is_complete_is_not_measured_again(measure, tmp_path):
    first = measure()
    assert measure() == []
    (tmp_path / "gpu" / "one-path" / "layer.json").unlink()
    assert measure() == [call for call in first if call[call.index("--output_dir") + 1].endswith("one-path")]
