"""`ultrafastbert plot`: figures of pretraining runs, and the comparison of two results of fine-tuning."""

import json
from pathlib import Path

import pytest

from ultrafastbert.cli import main


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    """The working directory, with results of fine-tuning in `a` and `b` and pretraining runs in `p` and `q`."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("a", 0.5), ("b", 0.625)):
        scores = {"RTE": {"metric": "accuracy", "values": [value], "data_fingerprint": "x"}}
        Path(name).mkdir()
        Path(name, "glue.json").write_text(json.dumps({"format": 1, "name": name, "settings": {}, "scores": scores}))
    for name in ("p", "q"):
        Path(name).mkdir()
        lines = [{"step": step, "tokens": 100 * step, "loss": 3.0, "tokens_per_second": 50.0} for step in range(1, 4)]
        lines += [{"step": 3, "tokens": 300, "seconds": 90.0, "validation_loss": 2.9, "validation_accuracy": 0.25}]
        lines[-1] |= {"leaf_entropy": [0.8, 0.9]}
        Path(name, "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def is_png(path):
    return Path(path).read_bytes().startswith(b"\x89PNG")


def test_two_results_of_fine_tuning_are_compared(capsys):
    main("plot", ["a", "b/glue.json"])
    out = capsys.readouterr().out
    assert "| RTE | accuracy | 1 | 50.0 [50.0, 50.0] | 62.5 [62.5, 62.5] | -12.5 |" in out
    assert "The figure is plots/compare_glue.png." in out and is_png("plots/compare_glue.png")

    main("plot", ["b", "a", "--output_dir", "new/pair"])
    out = capsys.readouterr().out
    assert "+12.5" in out and "new/pair/compare_glue.png" in out and is_png("new/pair/compare_glue.png")


def test_pretraining_runs_are_plotted(capsys):
    main("plot", ["p", "q", "--output_dir", "new/runs", "--unigram_entropy", "3.5"])
    files = [f"new/runs/{name}.png" for name in ("loss", "accuracy", "throughput", "leaves")]
    out = capsys.readouterr().out.splitlines()
    assert out[:4] == files and all(map(is_png, files))
    assert out[4:] == [
        "| run | minutes | millions of tokens | validation loss, nats | accuracy |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {name} | 1.5 | 0.0 | 2.900 | 25.0% |" for name in ("p", "q")),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "nowhere"], "error: nowhere cannot be read (No such file or directory)"),
        (["a", "p"], "error: p/glue.json cannot be read (No such file or directory)"),
        (["a", "./a"], "error: a/glue.json and a/glue.json are the same file"),
        (["a"], "error: runs has 1 results of fine-tuning; it should have two"),
        (["a", "b", "a"], "error: runs has 3 results of fine-tuning; it should have two"),
        (["a", "b", "--output_dir", "b/glue.json"], "error: b/glue.json/compare_glue.png cannot be written"),
        (["p", "nowhere"], "error: nowhere/metrics.jsonl has no metrics"),
        (["p", "../{name}/p"], "; the last parts of the paths should be different"),
        (["p", "--output_dir", "a/glue.json"], "a/glue.json"),
    ],
)
def test_errors_are_messages(arguments, message, directory, capsys):
    before = Path("b/glue.json").read_bytes()
    with pytest.raises(SystemExit) as raised:
        main("plot", [argument.format(name=directory.name) for argument in arguments])
    assert raised.value.code == 1
    assert message in capsys.readouterr().err
    assert Path("b/glue.json").read_bytes() == before and not list(directory.rglob("*.png"))


def test_a_path_is_required(capsys):
    with pytest.raises(SystemExit) as raised:
        main("plot", [])
    assert raised.value.code == 2 and "runs" in capsys.readouterr().err
