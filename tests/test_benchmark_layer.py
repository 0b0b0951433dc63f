"""The benchmark of layers runs, names what it cannot, and its ratios are those of its times."""

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "benchmark_layer.py"


@pytest.fixture
def run(tmp_path, monkeypatch):
    def run(*options):
        small = ["--hidden_size=8", "--dense=[7,15]", "--seconds=0.001", "--compiled=[]", "--threads=[1]"]
        small += ["--dtypes=[float32]", f"--output_dir={tmp_path}"]
        monkeypatch.setattr(sys, "argv", [SCRIPT.name, *small, *options])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return json.loads((tmp_path / "layer.json").read_text())

    return run


@pytest.mark.parametrize("backward", ["true", "false"])
def test_every_contender_is_timed_and_compared(run, tmp_path, backward, capsys):
    options = ["--sizes=[1x3,2x2]", "--backends=[gather,dense]", "--tokens=[1,5]", "--depths=[]"]
    result = run(*options, f"--backward={backward}")
    names = ["dense-7", "dense-15", "1x3 gather", "1x3 dense", "2x2 gather", "2x2 dense"]
    assert [(row["name"], row["tokens"]) for row in result["rows"]] == [(n, t) for t in (1, 5) for n in names]
    assert all(0 < row["least"] <= row["median"] for row in result["rows"])
    times = {(row["name"], row["tokens"]): row["median"] for row in result["rows"]}
    line = next(line for line in (tmp_path / "layer.md").read_text().splitlines() if line.startswith("| 2x2 gather"))
    median = times["2x2 gather", 5]
    assert line.endswith(f"{median:.3g} ({times['dense-15', 5] / median:.3g}x) |")
    assert line in capsys.readouterr().out and not (tmp_path / "layer.png").exists()


def test_the_fastest_backend_is_named_for_each_size(run, tmp_path):
    result = run("--sizes=[1x2,1x6]", "--backends=[gather,dense]", "--tokens=[1,64]", "--depths=[]")
    times = {(row["name"], row["tokens"]): row["median"] for row in result["rows"]}
    lines = (tmp_path / "layer.md").read_text().splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("| size |")) :]
    for line, size in zip(table[2:], ["1x2", "1x6"], strict=True):
        for cell, tokens in zip(line.split("|")[2:], [1, 64], strict=False):
            pair = sorted((times[f"{size} {backend}", tokens], backend) for backend in ("gather", "dense"))
            assert cell.startswith(f" {pair[0][1]} {pair[1][0] / pair[0][0]:.3g}x ")


def test_what_would_take_too_much_is_left_out(run):
    result = run("--sizes=[1000000x0]", "--backends=[gather]", "--tokens=[100]", "--depths=[]")
    assert [row["name"] for row in result["rows"]] == ["dense-7", "dense-15"]


@pytest.mark.parametrize("options", [["--sizes=[3by4]"], ["--dtypes=[float33]"], ["--dense=[]"]])
def test_wrong_options_are_named(run, options, capsys):
    with pytest.raises(SystemExit) as raised:
        run(*options)
    assert raised.value.code == 1 and options[0].split("=")[0][2:] in capsys.readouterr().err
