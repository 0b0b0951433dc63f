"""The benchmark of encoders runs, times nothing that computes something else, and its ratios are true."""

import importlib.util
import json
import re
import tempfile
from pathlib import Path

import pytest
import torch

import ultrafastbert
from ultrafastbert.benchmarks import encoder_contenders
from ultrafastbert.benchmarks.encoder_contenders import mixed_lengths
from ultrafastbert.cli import main

OURS = ["ultrafastbert-float32", "ultrafastbert-bfloat16", "optimized-bfloat16", "bert-float32", "bert-bfloat16"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def run(contenders, *options):
        small = ["--num_hidden_layers=2", "--hidden_size=16", "--num_attention_heads=2", "--vocabulary=50"]
        small += ["--size=1x3", "--threads=[1]"]
        small += ["--seconds=0", "--memory=false", f"--output_dir={tmp_path / 'out'}"]
        small += [f"--contenders=[{','.join(contenders)}]", "--workloads=[1x16,mixed]"]
        try:
            main("benchmark", ["encoder", *small, *options])
        finally:
            assert not list(temporary.iterdir())
        return json.loads((tmp_path / "out" / "encoder.json").read_text())

    return run


def test_ours_and_bert_are_timed_and_compared(run, tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        result = run(OURS, "--threads=[1,2]", "--baseline=bert-bfloat16")
    finally:
        torch.set_num_threads(threads)
    mixed = mixed_lengths().tolist()
    cases = {(row["threads"], row["workload"], row["name"]): row for row in result["results"]}
    assert list(cases) == [(t, w, n) for t in (1, 2) for w in ("1x16", "mixed") for n in OURS]
    assert all(0 < row["median"] <= row["p95"] and row["calls"] >= 9 for row in result["results"])
    for row in result["results"]:
        tokens = 16 if row["workload"] == "1x16" else sum(mixed)
        assert row["tokens_per_second"] * row["median"] == pytest.approx(tokens)
    assert len(mixed) == 16 and 40 < sum(mixed) / 16 < 50

    encoders = {row["name"]: row for row in result["results"]}
    assert all(encoders[f"{name}-float32"]["error"] == 0 for name in ("ultrafastbert", "bert"))
    assert all(0 < row["error"] < 0.08 for name, row in encoders.items() if "bfloat16" in name)
    config = ultrafastbert.UltraFastBertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        fff_depth=3,
        max_position_embeddings=512,
    )
    model = ultrafastbert.UltraFastBertModel(config)
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert encoders["ultrafastbert-float32"]["weights"] == weights
    assert encoders["ultrafastbert-bfloat16"]["weights"] == weights / 2

    table = (tmp_path / "out" / "encoder.md").read_text()
    assert table in capsys.readouterr().out
    ours, bert = (cases[2, "mixed", f"{name}-bfloat16"] for name in ("ultrafastbert", "bert"))
    last = table[table.index("**2 threads**") :]
    ratio = f"{bert['median'] / ours['median']:.3g}x"
    line = next(line for line in last.splitlines() if line.startswith("| ultrafastbert-bfloat16 | "))
    assert line.endswith(f"({ratio}) |")
    line = next(line for line in last.splitlines() if line.startswith("| ultrafastbert-bfloat16 : bert-bfloat16 |"))
    assert line.endswith(f" {ratio} |")
    assert (tmp_path / "out" / "encoder.png").read_bytes().startswith(b"\x89PNG")


def test_what_computes_something_else_is_not_timed(run, tmp_path, monkeypatch, capsys):
    settings = []

    def spoil(model, **given):
        settings.append(given)
        model.layers[0].attention.qkv_proj.weight.data.normal_()
        model.optimizations = ("spoilt",)
        return model

    monkeypatch.setattr(encoder_contenders, "optimize_for_inference", spoil)
    result = run(["bert-float32", "optimized-int8"])
    assert settings == [{"dtype": "bfloat16", "int8": True, "verbose": False}]
    assert {row["name"] for row in result["results"]} == {"bert-float32"}
    assert {row["name"] for row in result["not_timed"]} == {"optimized-int8"}
    table = (tmp_path / "out" / "encoder.md").read_text()
    assert re.search(r"^Not timed \(its outputs are wrong by [\d.]+\): optimized-int8\.$", table, re.MULTILINE)
    assert "optimized-int8 is not timed" in capsys.readouterr().err


@pytest.mark.parametrize("library, name", [("onnxruntime", "onnxruntime-int8"), ("openvino", "openvino")])
def test_libraries(run, tmp_path, library, name):
    pytest.importorskip("onnx")
    pytest.importorskip(library)
    result = run(["ultrafastbert-float32", "bert-float32", name])
    *_, encoder = result["results"]
    assert encoder["name"] == name and encoder["error"] < 0.05
    if library == "onnxruntime":
        assert encoder["note"] == "2 of 2 attention layers fused"
    times = {row["name"]: row["median"] for row in result["results"] if row["workload"] == "1x16"}
    ratio = f"{times[name] / times['ultrafastbert-float32']:.3g}x (ultrafastbert-float32 : {name})"
    assert ratio in (tmp_path / "out" / "encoder.md").read_text()


def test_our_own_graphs(run):
    """As `export onnx` writes them, with the outputs of the original."""
    pytest.importorskip("onnxruntime")
    names = ["ultrafastbert_onnx-float32", "ultrafastbert_onnx-int8"]
    results = {row["name"]: row for row in run(["bert-float32", *names], "--workloads=[1x16]")["results"]}
    assert results[names[0]]["error"] < 1e-5 < results[names[1]]["error"] < 0.08
    assert results[names[0]]["note"] == "as `export onnx` writes it"


def test_missing_libraries_are_named(run, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    result = run(["bert-float32", "openvino"])
    assert {row["name"] for row in result["results"]} == {"bert-float32"}
    for text in (capsys.readouterr().err, (tmp_path / "out" / "encoder.md").read_text()):
        assert "openvino; pip install -e '.[bench]'" in text


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured on Linux")
def test_memory_is_that_of_a_process_of_its_own(run):
    here = torch.ones(2**28)  # 1 GiB
    (encoder,) = run(["bert-float32"], "--memory=true", "--workloads=[1x16]")["results"]
    assert 5e7 < encoder["before"] < encoder["held"] <= encoder["peak"] < here.nbytes


def test_interruption_leaves_nothing(run, tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ultrafastbert.benchmarks.harness.take_turns", interrupt)
    with pytest.raises(SystemExit) as raised:
        run(["bert-float32"])
    assert raised.value.code == 130 and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "option",
    [
        "--contenders=[bert-float64]",
        "--contenders=[]",
        "--contenders=[bert-float32,bert-float32]",
        "--baseline=openvino",
        "--workloads=[8by128]",
        "--workloads=[2x0]",
        "--threads=[0]",
        "--size=1x",
        "--vocabulary=1",
        "--hidden_size=15",
    ],
)
def test_wrong_options_are_named(run, option, capsys):
    with pytest.raises(SystemExit) as raised:
        run(["bert-float32"], option)
    assert raised.value.code == 2 and option.split("=")[0][2:] in capsys.readouterr().err
