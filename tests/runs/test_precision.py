"""Which precision training chooses."""

import pytest
import torch

from ultrafastbert.runs import precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("bf16, fp32, chosen", [(0.5, 1.0, True), (0.9, 1.0, False), (3.0, 1.0, False)])
def test_a_cpu_gets_what_is_clearly_faster(monkeypatch, bf16, fp32, chosen):
    def take_turns(calls, seconds):
        for call in calls.values():
            call()
        return {"bf16": [bf16, 9.0, bf16], "fp32": [fp32, fp32, 9.0]}

    monkeypatch.setattr(precision, "take_turns", take_turns)
    precision._cpu_is_faster_in_bf16.cache_clear()
    before = torch.get_rng_state()
    assert precision.uses_bf16("auto", CPU, width=16) is chosen
    assert torch.equal(torch.get_rng_state(), before)
    precision._cpu_is_faster_in_bf16.cache_clear()


def test_nothing_is_timed_if_the_option_decides(monkeypatch):
    monkeypatch.setattr(precision, "take_turns", None)
    assert precision.uses_bf16("bf16", CPU, width=16) and not precision.uses_bf16("fp32", CPU, width=16)
    assert not precision.uses_bf16("auto", CPU)
