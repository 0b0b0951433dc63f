"""The benchmark of generation times decoders whose token by token outputs are right, and its ratios are theirs."""

import json

import pytest
import torch

from ultrafastbert.benchmarks import generation
from ultrafastbert.benchmarks.harness import digits
from ultrafastbert.cli import main
from ultrafastbert.layers.fff import FFF
from ultrafastbert.layers.hard import HardFFF

SIZES = ["1x3", "1x2x4", "dense-9", "none"]


@pytest.fixture
def run(tmp_path):
    def run(*options):
        small = ["--hidden_size=16", "--num_hidden_layers=2", "--num_attention_heads=2", "--vocabulary=40"]
        small += ["--contexts=[5]", "--tokens=3", "--seconds=0.001", f"--output_dir={tmp_path}"]
        main("benchmark", ["generation", *small, *options])
        return json.loads((tmp_path / "generation.json").read_text())

    return run


def test_every_decoder_is_timed_and_compared(run, tmp_path, capsys):
    result = run(f"--sizes=[{','.join(SIZES)}]", "--contexts=[5,1]")
    assert result["cases"] == [{"threads": 1, "context": 5}, {"threads": 1, "context": 1}]
    assert [row["name"] for row in result["results"]] == ["gpt2", *SIZES] * 2 and not result["not_timed"]
    assert all(row["error"] < 1e-5 for row in result["results"])
    times = {row["name"]: row["median"] for row in result["results"] if row["context"] == 5}
    table = (tmp_path / "generation.md").read_text()
    for name, median in times.items():
        cell = f"| {name} | {digits(1e3 * median / 3)} ms ({times['gpt2'] / median:.3g}x) |"
        assert cell in table
    assert table in capsys.readouterr().out


def test_decoders_that_compute_something_else_are_not_timed(run, monkeypatch):
    forward = FFF.forward

    def wrong(self, x):
        return forward(self, x) * (1.1 if self.backend is None else 1)  # the copy to compare with has another backend

    monkeypatch.setattr(FFF, "forward", wrong)
    result = run("--sizes=[1x3]")
    assert [row["name"] for row in result["results"]] == ["gpt2"]
    assert "its outputs are wrong by" in result["not_timed"][0]["reason"]


def test_decoders_are_those_that_are_named():
    arguments = generation.GenerationArguments(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocabulary=40, contexts=[5]
    )
    for name, layer in (("1x3", FFF), ("1x2x4", HardFFF)):
        model = generation.build_decoder(arguments, name)
        assert all(isinstance(block.mlp, layer) for block in model.transformer.h)
        if layer is HardFFF:
            assert all(block.mlp.is_split for block in model.transformer.h)
        assert not any(module.training for module in model.modules())
    assert generation.build_decoder(arguments, "gpt2").transformer.h[0].mlp.c_fc.nf == 64


def test_calls_start_from_the_same_context_with_other_tokens():
    arguments = generation.GenerationArguments(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocabulary=40, contexts=[5], tokens=4
    )
    ready = generation._set_up(arguments, {"context": 5}, "1x3")
    first, second = ready.call(), ready.call()
    assert not torch.equal(first.tokens, second.tokens)
    assert ready.error(first) < 1e-5 and ready.error(second) < 1e-5
    assert ready.error(generation.Generated(second.tokens, first.logits)) > 0.01


@pytest.mark.parametrize(
    "option, message",
    [
        ("--sizes=[3x]", "sizes is '3x'"),
        ("--contexts=[0]", "contexts is [0]"),
        ("--num_attention_heads=3", "num_attention_heads is 3; it should be a divisor of hidden_size, 16"),
    ],
)
def test_wrong_options_are_named(run, option, message, capsys):
    with pytest.raises(SystemExit):
        run(option)
    assert message in capsys.readouterr().err
