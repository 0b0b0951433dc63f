import json
from dataclasses import replace

import pytest
import torch

from ultrafastbert.experiments import speed
from ultrafastbert.experiments.arguments import TimingArguments
from ultrafastbert.experiments.processes import run_measurements
from ultrafastbert.experiments.speed import LayerTiming, plan_timing
from ultrafastbert.utils.errors import UserError


@pytest.fixture
def arguments():
    return TimingArguments(
        blocks=[2, 8], feedforward_blocks=2, block_size=4, hidden_size=16, batch_sizes=[1, 3], seconds=0.001
    )


def time_layers(arguments, directory):
    return run_measurements(plan_timing(arguments), None, directory, workers=1, device="cpu")


def test_every_number_of_blocks_is_reported(arguments, tmp_path):
    cases = time_layers(arguments, tmp_path)
    assert [(case["batch_size"], case["blocks"]) for case in cases] == [(1, 2), (1, 8), (3, 2), (3, 8)]
    for case in cases:
        assert set(case["times"]) == ({"ff", "moe", "fff"} if case["blocks"] == 2 else {"moe", "fff"})
        assert all(times["calls"] >= 3 and times["mean"] > 0 for times in case["times"].values())


def test_timings_are_kept(arguments, tmp_path, monkeypatch):
    first = time_layers(arguments, tmp_path)
    monkeypatch.setattr(speed, "take_turns", None)
    assert time_layers(arguments, tmp_path) == first
    arguments.hidden_size = 32
    with pytest.raises(UserError, match="hidden_size was 16 and is 32. Choose another output_dir"):
        time_layers(arguments, tmp_path)
    assert len(json.loads((tmp_path / "batch-1-blocks-2.json").read_text())["settings"]) == 8


def test_trees_and_mixtures_spread_their_inputs(arguments):
    layers = LayerTiming(arguments, batch_size=1, blocks=8).build("cpu")
    x = torch.randn(64, 16)
    assert set(layers) == {"moe", "fff"}
    assert len(layers["fff"].route(x)[..., -1].unique()) > 4
    assert len((x @ layers["moe"].gate_weight.T).argmax(-1).unique()) > 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": [2, 3]}, r"timing.blocks is \[2, 3\]; it should be at least one value, each a power of 2"),
        ({"blocks": []}, r"timing.blocks is \[\]"),
        ({"seconds": 0.0}, "timing.seconds is 0.0; it should be greater than 0"),
        ({"batch_sizes": [0]}, r"timing.batch_sizes is \[0\]; it should be at least one value, each at least 1"),
    ],
)
def test_impossible_sizes_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        replace(arguments, **options)


def test_the_number_of_threads_is_restored(arguments, tmp_path):
    before = torch.get_num_threads()
    arguments.threads, arguments.blocks = before + 1, [2]
    time_layers(arguments, tmp_path)
    assert torch.get_num_threads() == before
