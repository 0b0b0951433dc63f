"""docs/export.md: its commands and programs run, one after the other, in a directory with a model."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.export.helpers import make, save
from ultrafastbert.cli import main

GUIDE = Path(__file__).parents[2] / "docs" / "export.md"
SCORES = "score\tsentence1\tsentence2\n" + '4.0\tthe cat sat\ta cat ran\n1.0\ta dog\tthe mat "on\n' * 4


@pytest.mark.slow
def test_the_commands_and_programs_of_the_guide_run(tmp_path, monkeypatch, capsys):
    for package in ("onnx", "onnxruntime", "onnxscript", "sentence_transformers", "peft"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    save(make("UltraFastBertForMaskedLM", fff_depth=7), "out/quickstart/final")
    Path("stsb").mkdir()
    Path("stsb/train.tsv").write_text(SCORES)
    ran = []
    for language, text in re.findall(r"```(\w+)\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL):
        if language == "python":
            exec(compile(text, f"{GUIDE.name}: {text[:40]}", "exec"), {})
            ran.append("python")
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            if program == "ultrafastbert":
                main(argv=arguments)
                ran.append(" ".join(arguments[:2]))
            else:
                assert program == "pip"
    assert ran.count("python") == 7 and {"export hub", "export onnx", "export aoti"} <= set(ran)
    assert "trainable params" in capsys.readouterr().out
    assert Path("out/sentences/1_Pooling").is_dir() and Path("out/fast/model.safetensors").is_file()
    shutil.rmtree("out")
