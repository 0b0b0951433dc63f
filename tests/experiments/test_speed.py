import json
from dataclasses import replace

import pytest
import torch

from ultrafastbert.experiments import speed
from ultrafastbert.experiments.arguments import TimingArguments
from ultrafastbert.experiments.speed import build_layers, check_timing, time_layers
from ultrafastbert.utils.errors import UserError


@pytest.fixture
def arguments():
    return TimingArguments(
        blocks=[2, 8], feedforward_blocks=2, block_size=4, hidden_size=16, batch_sizes=[1, 3], seconds=0.001
    )


def test_every_number_of_blocks_is_reported(arguments, tmp_path):
    cases = time_layers(arguments, tmp_path, "cpu")
    assert [(case["batch_size"], case["blocks"]) for case in cases] == [(1, 2), (1, 8), (3, 2), (3, 8)]
    for case in cases:
        assert set(case["times"]) == ({"ff", "moe", "fff"} if case["blocks"] == 2 else {"moe", "fff"})
        assert all(times["calls"] >= 3 and times["mean"] > 0 for times in case["times"].values())


def test_what_was_timed_is_kept(arguments, tmp_path, monkeypatch):
    first = time_layers(arguments, tmp_path, "cpu")
    monkeypatch.setattr(speed, "take_turns", None)
    assert time_layers(arguments, tmp_path, "cpu") == first
    arguments.hidden_size = 32
    with pytest.raises(UserError, match="hidden_size was 16 and is 32. Choose another output_dir"):
        time_layers(arguments, tmp_path, "cpu")
    assert len(json.loads((tmp_path / "runs/timing/batch-1-blocks-2.json").read_text())["settings"]) == 8


def test_trees_and_mixtures_spread_their_inputs(arguments):
    layers = build_layers(arguments, 8, "cpu")
    x = torch.randn(64, 16)
    assert set(layers) == {"moe", "fff"}
    assert len(layers["fff"].route(x)[..., -1].unique()) > 4
    assert len((x @ layers["moe"].gate_weight.T).argmax(-1).unique()) > 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": [2, 3]}, "timing.blocks has 3; it should be a power of 2"),
        ({"blocks": []}, r"timing.blocks is \[\]"),
        ({"seconds": 0.0}, "timing.seconds is 0.0; it should be more than 0"),
    ],
)
def test_sizes_that_are_none_are_named(arguments, options, message):
    check_timing(arguments)
    with pytest.raises(UserError, match=message):
        check_timing(replace(arguments, **options))


def test_the_threads_are_as_before(arguments, tmp_path):
    before = torch.get_num_threads()
    arguments.threads, arguments.blocks = before + 1, [2]
    time_layers(arguments, tmp_path, "cpu")
    assert torch.get_num_threads() == before
