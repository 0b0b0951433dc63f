"""The benchmark of callers: they do call at the same time, share a model, and get what it computes."""

import json
import threading
import time

import pytest
import torch

from ultrafastbert.benchmarks import callers
from ultrafastbert.benchmarks.bert import Encoder
from ultrafastbert.benchmarks.callers import Callers, CallersArguments
from ultrafastbert.cli import main

SMALL = ["--hidden_size=16", "--num_hidden_layers=2", "--num_attention_heads=2", "--vocabulary=40", "--size=1x3"]


@pytest.fixture
def run(tmp_path):
    def run(*options):
        short = ["--workloads=[1x3,1x5]", "--requests=3", "--seconds=0.001", f"--output_dir={tmp_path}"]
        main("benchmark", ["callers", *SMALL, *short, *options])
        return json.loads((tmp_path / "callers.json").read_text())

    return run


def test_every_encoder_with_every_number_of_callers(run, tmp_path):
    result = run("--contenders=[ultrafastbert-float32,bert-float32]", "--callers=[1,3]", "--threads=[1,2]")
    cases = [{"threads": threads, "callers": callers} for threads in (1, 2) for callers in (1, 3)]
    assert result["cases"] == cases and not result["not_timed"]
    assert [row["name"] for row in result["results"]] == ["ultrafastbert-float32", "bert-float32"] * 4
    for row in result["results"]:
        assert row["error"] < 1e-5
        assert row["texts_per_second"] == pytest.approx(3 * row["callers"] / row["median"])
        assert 0 < row["p50_call"] <= row["p99_call"]
    table = (tmp_path / "callers.md").read_text()
    assert "| encoder | 1 caller | 3 callers |" in table and "Each call with 2 threads" in table


def test_answers_that_are_swapped_are_noticed(run, monkeypatch):
    call = Callers._call
    monkeypatch.setattr(Callers, "_call", lambda self, caller: [(w, o.roll(1, 1)) for w, o in call(self, caller)])
    with pytest.raises(SystemExit):
        run("--contenders=[bert-float32]", "--callers=[2]", "--threads=[1]")


def test_callers_call_at_the_same_time():
    """A call returns once all callers are in one, so they could not call one after the other."""
    inside = threading.Barrier(3, timeout=60)
    numbers = []

    def call(tokens, mask):
        inside.wait()
        numbers.append(torch.get_num_threads())
        return tokens[..., None]

    batches = {name: (torch.tensor([[length]]), None) for name, length in (("1x1", 1), ("1x2", 2))}
    outputs = Callers(Encoder(call, 0), batches, callers=3, threads=1, requests=2).round()
    assert [workload for workload, _ in outputs] == ["1x1", "1x2", "1x2", "1x1", "1x1", "1x2"]
    assert [output.item() for _, output in outputs] == [1, 2, 2, 1, 1, 2]
    assert numbers == [1] * 6


def test_latencies_are_those_of_calls_but_the_first():
    seconds = iter([0.2, 0.0, 0.0])

    def call(tokens, mask):
        time.sleep(next(seconds))
        return tokens

    group = Callers(Encoder(call, 0), {"1x1": (torch.zeros(1, 1), None)}, callers=1, threads=1, requests=3)
    group.round()
    assert len(group.latencies) == 2 and max(group.latencies) < 0.2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"workloads": ["2x16"]}, "workloads is \\['2x16'\\]; it should be 1xTOKENS"),
        ({"callers": [0]}, "callers is \\[0\\]"),
        ({"requests": 1}, "requests is 1; it should be an integer, at least 2"),
        ({"contenders": ["bert"]}, "contenders is 'bert'"),
        ({"baseline": "openvino", "contenders": ["bert-float32"]}, "baseline is 'openvino'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        CallersArguments(**options)


def test_the_default_threads_are_one_and_all(monkeypatch):
    for count, threads in ((1, [1]), (6, [1, 6])):
        monkeypatch.setattr(callers.torch, "get_num_threads", lambda count=count: count)
        assert CallersArguments().threads == threads
