"""Contenders take turns, and what is counted is what was called."""

import pytest

from ultrafastbert.timing import processor, take_turns


@pytest.mark.parametrize("burst", [1, 4])
def test_contenders_take_turns(monkeypatch, burst):
    """With a clock that calls move by 10 ms (a) and 20 ms (b)."""
    clock, called = [0.0], []
    monkeypatch.setattr("ultrafastbert.timing.time.perf_counter", lambda: clock[0])

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


def test_the_processor_has_a_name():
    assert processor()
