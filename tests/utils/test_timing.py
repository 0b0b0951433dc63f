"""Contenders take turns, and the right calls are counted."""

import pytest
import torch

from ultrafastbert.utils.hardware import device_name, processor
from ultrafastbert.utils.timing import take_turns


@pytest.mark.parametrize("burst", [1, 4])
def test_contenders_take_turns(monkeypatch, burst):
    """With a clock that calls advance by 10 ms (a) and 20 ms (b)."""
    clock, called = [0.0], []
    monkeypatch.setattr("ultrafastbert.utils.timing.time.perf_counter", lambda: clock[0])

    def call(name, seconds):
        called.append(name)
        clock[0] += seconds

    calls = {"a": lambda: call("a", 0.01), "b": lambda: call("b", 0.02)}
    times = take_turns(calls, 0.0, burst=burst)
    turns = "aabb" + 3 * ("a" * (1 + max(2, burst)) + "b" * (1 + burst))
    assert "".join(called) == turns
    assert times["a"] == pytest.approx([0.01] * 3 * max(2, burst))
    assert times["b"] == pytest.approx([0.02] * 3 * burst)

    times = take_turns(calls, 0.5, burst=burst)
    assert all(0.5 <= sum(values) + 1e-9 < 0.6 for values in times.values())


def test_on_a_gpu_the_host_waits_for_the_device_once_per_burst(monkeypatch):
    """With a device whose clock calls advance by 10 ms, and whose events have no times before the host has waited."""
    clock, waited = [0.0], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.time, self.waits = clock[0], len(waited)

        def elapsed_time(self, end):
            assert len(waited) > end.waits
            return 1e3 * (end.time - self.time)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(clock[0]))

    def call():
        clock[0] += 0.01

    times = take_turns({"a": call, "b": call}, 0.0, burst=5, device="cuda")
    assert times == {name: pytest.approx([0.01] * 15) for name in "ab"}
    assert len(waited) == 2 + 2 * 3


def test_the_device_has_a_name(monkeypatch):
    assert device_name("cpu") == processor() != ""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the GPU {device}")
    assert device_name("cuda") == "the GPU cuda"
