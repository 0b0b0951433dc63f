"""The benchmark of layers runs, names what it cannot, and its ratios are those of its times."""

import json

import pytest
import torch

from ultrafastbert import FFF
from ultrafastbert.benchmarks import layer_tables
from ultrafastbert.benchmarks.harness import digits
from ultrafastbert.benchmarks.layer import LayerArguments
from ultrafastbert.benchmarks.layer_contenders import OriginalTrees
from ultrafastbert.cli import main
from ultrafastbert.utils import hardware


@pytest.fixture
def run(tmp_path, monkeypatch):
    def run(*options):
        small = ["--hidden_size=8", "--dense=[7,15]", "--seconds=0.001", "--compiled=[]", "--threads=[1]"]
        small += ["--dtypes=[float32]", f"--output_dir={tmp_path}"]
        main("benchmark", ["layer", *small, *options])
        return json.loads((tmp_path / "layer.json").read_text())

    return run


@pytest.mark.parametrize("backward", ["true", "false"])
def test_every_contender_is_timed_and_compared(run, tmp_path, backward, capsys):
    options = ["--sizes=[1x3,2x2]", "--backends=[gather,dense]", "--tokens=[1,5]", "--depths=[]"]
    result = run(*options, f"--backward={backward}")
    names = ["dense-7", "dense-15", "1x3 gather", "1x3 dense", "2x2 gather", "2x2 dense"]
    assert [(row["name"], row["tokens"]) for row in result["results"]] == [(n, t) for t in (1, 5) for n in names]
    assert all(0 < row["least"] <= row["median"] for row in result["results"])
    times = {(row["name"], row["tokens"]): row["median"] for row in result["results"]}
    line = next(line for line in (tmp_path / "layer.md").read_text().splitlines() if line.startswith("| 2x2 gather"))
    median = times["2x2 gather", 5]
    assert line.endswith(f"{digits(1e6 * median / 5)} ({times['dense-15', 5] / median:.3g}x) |")
    assert line in capsys.readouterr().out and not (tmp_path / "layer.png").exists()


def test_the_fastest_backend_is_named_for_each_size(run, tmp_path):
    result = run("--sizes=[1x2,1x6]", "--backends=[gather,dense]", "--tokens=[1,64]", "--depths=[]")
    times = {(row["name"], row["tokens"]): row["median"] for row in result["results"]}
    lines = (tmp_path / "layer.md").read_text().splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("| size |")) :]
    for line, size in zip(table[2:], ["1x2", "1x6"], strict=True):
        for cell, tokens in zip(line.split("|")[2:], [1, 64], strict=False):
            pair = sorted((times[f"{size} {backend}", tokens], backend) for backend in ("gather", "dense"))
            assert cell.startswith(f" {pair[0][1]} {pair[1][0] / pair[0][0]:.3g}x ")


def test_what_would_take_too_much_is_skipped(run):
    result = run("--sizes=[1000000x0]", "--backends=[gather]", "--tokens=[100]", "--depths=[]")
    assert [row["name"] for row in result["results"]] == ["dense-7", "dense-15"]
    result = run("--sizes=[1x13]", "--backends=[dense,original,blocked]", "--tokens=[1025]", "--depths=[]")
    assert [row["name"] for row in result["results"]] == ["dense-7", "dense-15", "1x13 blocked"]


@pytest.mark.parametrize("backward", ["true", "false"])
def test_backends_are_timed_compiled_too(run, monkeypatch, backward):
    compile, modes = torch.compile, []

    def eagerly(layer, dynamic, mode):
        modes.append(mode)
        return compile(layer, backend="eager", dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", eagerly)
    options = ["--sizes=[1x3,1x7]", "--backends=[blocked,original]", "--compiled=[1x7]", "--tokens=[5]", "--depths=[]"]
    options += ["--compiled_backends=[blocked,original]", "--dtypes=[bfloat16]", "--compile_mode=max-autotune"]
    result = run(*options, f"--backward={backward}", "--one_path=true")
    names = ["dense-7", "dense-15", "1x3 blocked", "1x3 original"]
    names += ["1x7 blocked", "1x7 blocked, compiled", "1x7 original", "1x7 original, compiled"]
    assert [row["name"] for row in result["results"]] == names and modes == ["max-autotune"] * 2


@pytest.mark.parametrize("trees, depth", [(1, 0), (1, 4), (3, 2)])
def test_the_original_formulation_computes_the_same(trees, depth):
    layer, ours = OriginalTrees(16, depth, trees), FFF(16, depth, trees, backend="reference")
    torch.nn.init.normal_(layer.bias_in)
    ours.load_state_dict(layer.state_dict())
    x = torch.randn(50, 16, requires_grad=True)
    expected, output = ours(x), layer(x)
    torch.testing.assert_close(output, expected)
    grad = torch.randn_like(x)
    for gradient, right in zip(
        torch.autograd.grad(output, [x, *layer.parameters()], grad),
        torch.autograd.grad(expected, [x, *ours.parameters()], grad),
        strict=True,
    ):
        torch.testing.assert_close(gradient, right)


def microseconds_per_token(floor):
    return 1e6 * floor["median"] / floor["tokens"]


def test_a_floor_is_beside_the_times_where_the_peaks_are_known(run, monkeypatch, tmp_path):
    """With a device that moves 1 byte and computes 100 operations a microsecond."""
    peak = hardware.Peak(1e6, {torch.float32: 1e8})
    monkeypatch.setattr(layer_tables, "PEAKS", {hardware.processor(): peak})
    result = run("--sizes=[1x1,2x0]", "--backends=[gather,dense]", "--tokens=[1,100]", "--depths=[]")
    floors = {
        (row["name"][1:-8], row["tokens"]): (row["bound"], microseconds_per_token(row)) for row in result["floors"]
    }
    # 4 bytes each of 8 numbers: token and output; 15 neurons with two vectors
    assert floors["dense-15", 1] == ("memory", pytest.approx(4 * 8 * (2 + 2 * 15)))
    assert floors["dense-15", 100] == ("memory", pytest.approx(4 * 8 * (2 + 0.3)))
    assert floors["1x1", 1] == ("memory", pytest.approx(4 * 8 * (2 + 2 * 2)))  # root and one leaf
    assert floors["1x1", 100] == ("memory", pytest.approx(4 * 8 * (2 + 0.06)))
    lines = (tmp_path / "layer.md").read_text().splitlines()
    after = {line: before for before, line in zip(lines, lines[1:], strict=False) if "floor*" in line}
    names = [("*dense-7, floor*", "dense-7"), ("*dense-15, floor*", "dense-15")]
    names += [("*1x1, floor*", "1x1 dense"), ("*2x0, floor*", "2x0 dense")]
    assert [(a.split("|")[1].strip(), b.split("|")[1].strip()) for a, b in after.items()] == names

    monkeypatch.setattr(layer_tables, "PEAKS", {hardware.processor(): peak._replace(flops={torch.float32: 1e6})})
    result = run("--sizes=[1x1]", "--tokens=[10]", "--depths=[]", "--backward=true", "--backends=[dense]")
    floors = {row["name"][1:-8]: (row["bound"], microseconds_per_token(row)) for row in result["floors"]}
    assert floors["1x1"] == ("memory", pytest.approx(4 * 8 * (5 + 6 * 0.3)))
    assert floors["dense-15"] == ("arithmetic", pytest.approx(3 * 4 * 15 * 8))


def test_defaults_depend_on_the_device():
    cpu, cuda = LayerArguments(), LayerArguments("cuda", tokens=[1])
    assert (cpu.dtypes, cuda.dtypes) == (["float32", "bfloat16"], ["bfloat16"])
    assert cpu.dense[-1] == 4095 and cuda.dense[-1] == 3072 and cuda.tokens == [1]
    assert "blocked" in cuda.backends and "1x15" in cuda.sizes and "1x15" not in cpu.sizes


@pytest.mark.parametrize(
    "options", [["--sizes=[3by4]"], ["--dtypes=[float33]"], ["--dense=[]"], ["--backends=[fast]"]]
)
def test_wrong_options_are_named(run, options, capsys):
    with pytest.raises(SystemExit) as raised:
        run(*options)
    assert raised.value.code == 2 and options[0].split("=")[0][2:] in capsys.readouterr().err
