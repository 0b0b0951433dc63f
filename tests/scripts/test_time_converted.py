"""The script that times converted encoders."""

import json

from tests.conversion.bert_family import write
from tests.scripts.helpers import load_script


def test_all_contenders_are_timed_on_all_workloads(tmp_path, capsys):
    script = load_script("time_converted")
    write(tmp_path / "model", "bert", "Model", max_position_embeddings=128)
    script.main(script.Arguments(model=str(tmp_path / "model"), seconds=0.001, output_dir=str(tmp_path / "out")))
    results = json.loads((tmp_path / "out" / "converted.json").read_text())["results"]
    names = {"transformers", "converted", "optimized-float32"}  # int8 may be too coarse for noise
    for workload in ("1x16", "1x128", "mixed"):
        assert names <= {result["name"] for result in results if result["workload"] == workload}
    errors = {result["name"]: result["error"] for result in results}
    assert errors["transformers"] == 0 and errors["converted"] < 1e-5 and errors["optimized-float32"] < 1e-5
    assert "| workload | transformers | converted |" in capsys.readouterr().out
