"""The harness times only contenders that are right and fit, and resumes with the cases that remain."""

import json
from dataclasses import dataclass

import pytest
import torch

from ultrafastbert.benchmarks import harness
from ultrafastbert.benchmarks.harness import TOO_LARGE, Benchmark, Contender, Ready, typical_error
from ultrafastbert.utils.errors import UserError


@dataclass
class Arguments:
    output_dir: str
    seconds: float = 0.0
    sizes: tuple[int, ...] = (1, 2)


@pytest.fixture
def start(tmp_path):
    return lambda **options: Benchmark("toy", Arguments(str(tmp_path), **options))


def contender(name="right", error=0.0, set_up=None, **options):
    return Contender(name, set_up or (lambda: Ready(lambda: 1, lambda output: error)), **options)


def out_of_memory():
    raise torch.OutOfMemoryError


CASES = [{"size": 1}, {"size": 2}]


def measure_all(benchmark, contenders):
    for case in benchmark.remaining(CASES):
        benchmark.measure(case, contenders)


def test_an_interrupted_benchmark_resumes_with_the_remaining_cases(start, tmp_path, monkeypatch, capsys):
    take_turns, calls = harness.take_turns, []

    def interrupt_second(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return take_turns(*given)

    monkeypatch.setattr(harness, "take_turns", interrupt_second)
    with pytest.raises(KeyboardInterrupt):
        measure_all(start(), [contender()])
    assert [path.name for path in tmp_path.iterdir()] == ["toy.partial.json"]

    resumed = start()
    first = resumed.results[0]
    measure_all(resumed, [contender()])
    resumed.finish(["text"])
    assert len(calls) == 3 and "resuming after 1 cases" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy.json", "toy.md"]
    record = json.loads((tmp_path / "toy.json").read_text())
    assert record["cases"] == CASES and record["results"][0] == first and len(record["results"]) == 2
    assert set(record["environment"]) == {"device", "python", "torch"} and record["command"].startswith(
        "ultrafastbert"
    )
    assert record["arguments"] == {"seconds": 0.0, "sizes": [1, 2]}

    measure_all(start(), [contender()])
    assert len(calls) == 5  # a complete benchmark is measured again


def test_cases_with_other_settings_are_not_used(start, capsys):
    measure_all(start(), [contender()])
    assert not list(start().remaining(CASES))
    assert list(start(sizes=(1,)).remaining(CASES)) == CASES
    assert "other settings" in capsys.readouterr().err


def test_only_contenders_that_are_right_and_fit_are_timed(start, tmp_path, capsys):
    contenders = [
        contender("right", 0.0009),
        contender("rounded", 0.079, dtype="bfloat16"),
        contender("wrong", 0.0011),
        contender("undefined", float("nan")),
        contender("skipped", set_up=out_of_memory, skip=TOO_LARGE),
        contender("large", set_up=out_of_memory),
        contender("absent", needs=["no_such_package"]),
    ]
    benchmark = start()
    benchmark.measure({"size": 1}, contenders)
    assert list(benchmark.select(size=1)) == ["right", "rounded"] and not benchmark.select(size=2)
    benchmark.finish(["text"])
    lines = (tmp_path / "toy.md").read_text().splitlines()
    assert "Not timed (its outputs are wrong by 0.0011): wrong." in lines
    assert "Not timed (too large a computation): skipped." in lines and "Not timed (out of memory): large." in lines
    assert any("no_such_package" in line and line.endswith(": absent.") for line in lines)
    message = capsys.readouterr().err
    assert "large is not timed (size 1): out of memory" in message and "skipped is not" not in message


def test_a_required_contender_has_to_be_timed(start, tmp_path):
    with pytest.raises(UserError, match="right, which the others are compared with, cannot be timed: its outputs"):
        start().measure({"size": 1}, [contender(error=1.0)], required="right")
    with pytest.raises(torch.OutOfMemoryError):
        start().measure({"size": 1}, [contender(set_up=out_of_memory)], must_fit=True)
    assert not list(tmp_path.iterdir())


def test_an_output_dir_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="output_dir .* cannot be created"):
        Benchmark("toy", Arguments(str(tmp_path / "file" / "out")))


def test_the_typical_error_ignores_few_tokens():
    expected = torch.ones(16, 3)
    output = expected.clone()
    output[:4] += 100
    assert typical_error(output, expected) == 0
    output[4] += 0.5
    assert typical_error(output, expected) == pytest.approx(0.5) and typical_error(output, expected, 0.0) > 50
