"""The benchmark against a small stand-in for the peer, which has its parameters and its mathematics."""

import json
import sys
import types
from importlib.machinery import ModuleSpec

import pytest
import torch
from torch import nn

from ultrafastbert.cli import main


class Peer(nn.Module):
    """A tree with the parameters of `fastfeedforward.FFF`, evaluated plainly."""

    def __init__(self, input_width, leaf_width, output_width, depth):
        super().__init__()
        nodes, leaves = 2**depth - 1, 2**depth
        self.depth = nn.Parameter(torch.tensor(depth), requires_grad=False)
        self.node_weights = nn.Parameter(torch.empty(nodes, input_width))
        self.node_biases = nn.Parameter(torch.empty(nodes, 1))
        self.w1s = nn.Parameter(torch.empty(leaves, input_width, leaf_width))
        self.b1s = nn.Parameter(torch.empty(leaves, leaf_width))
        self.w2s = nn.Parameter(torch.empty(leaves, leaf_width, output_width))
        self.b2s = nn.Parameter(torch.empty(leaves, output_width))

    def forward(self, x):
        return torch.stack([self.subtree(token, 0, 0) for token in x])

    def subtree(self, x, level, n):
        if level == self.depth:
            return (x @ self.w1s[n] + self.b1s[n]).relu() @ self.w2s[n] + self.b2s[n]
        node = 2**level - 1 + n
        right = (self.node_weights[node] @ x + self.node_biases[node, 0]).sigmoid()
        if not self.training:
            return self.subtree(x, level + 1, 2 * n + int(right > 0.5))
        return right * self.subtree(x, level + 1, 2 * n + 1) + (1 - right) * self.subtree(x, level + 1, 2 * n)


@pytest.fixture
def run(tmp_path, monkeypatch):
    def run(peer, *options):
        module = types.ModuleType("fastfeedforward")
        module.FFF, module.__spec__ = peer, ModuleSpec("fastfeedforward", None)
        monkeypatch.setitem(sys.modules, "fastfeedforward", module if peer else None)
        small = ["--width=8", "--leaf_size=3", "--tokens=[5]", "--depths=[1,2]", "--seconds=0.001"]
        main("benchmark", ["soft", *small, f"--output_dir={tmp_path / 'out'}", *options])
        return json.loads((tmp_path / "out" / "soft.json").read_text())

    return run


def test_equal_layers_are_timed_and_the_table_has_their_ratios(run, tmp_path, capsys):
    result = run(Peer)
    modes = ("inference", "training step", "route")
    assert result["cases"] == [{"depth": d, "tokens": 5, "mode": m} for d in (1, 2) for m in modes]
    assert len(result["results"]) == 12 and all(row["error"] < 1e-5 for row in result["results"])
    table = (tmp_path / "out" / "soft.md").read_text()
    assert table in capsys.readouterr().out
    for first, second in zip(result["results"][::2], result["results"][1::2], strict=True):
        pair = ("all nodes", "nodes on paths") if first["mode"] == "route" else ("SoftFFF", "fastfeedforward")
        assert (first["name"], second["name"]) == pair
        assert f"({second['median'] / first['median']:.3g}x)" in table


def test_a_training_step_that_would_take_too_long_is_skipped(run):
    rows = run(Peer, "--depths=[9]", "--tokens=[5]", "--width=2", "--leaf_size=1")["results"]
    assert [row["mode"] for row in rows[::2]] == ["inference", "route"]


def test_layers_that_differ_are_not_timed(run, tmp_path, capsys):
    class Wrong(Peer):
        def forward(self, x):
            return super().forward(x) * 1.01

    with pytest.raises(SystemExit) as error:
        run(Wrong)
    message = capsys.readouterr().err
    assert error.value.code == 1 and "fastfeedforward, which the others are compared with, cannot be timed" in message
    assert "its outputs are wrong by 0.0" in message
    assert not list((tmp_path / "out").iterdir())


def test_without_the_peer_the_command_says_what_to_install(run, capsys):
    with pytest.raises(SystemExit):
        run(None)
    message = capsys.readouterr().err
    assert "not installed: fastfeedforward; pip install -e '.[bench]'" in message


@pytest.mark.parametrize("option", ["--depths=[0]", "--tokens=[]", "--threads=0"])
def test_wrong_numbers_are_named(run, option, capsys):
    with pytest.raises(SystemExit):
        run(Peer, option)
    assert f"{option[2:].split('=')[0]} is" in capsys.readouterr().err
