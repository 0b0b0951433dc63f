"""`ultrafastbert convert`: both directions, what it prints, and errors as one sentence."""

import subprocess
import sys

from tests.conversion import original_code as original
from tests.conversion.bert_family import write


def convert(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "ultrafastbert", "convert", *arguments], capture_output=True, text=True
    )


def test_a_classifier_is_converted_and_converted_back(tmp_path):
    config = original.config("ScriptableLMForSequenceClassification")
    source = original.write(tmp_path / "source", config, original.state(config))
    result = convert(source, tmp_path / "ours")
    assert result.returncode == 0, result.stderr
    assert "UltraFastBertForSequenceClassification: 2 layers of width 24, feedforward 2x3," in result.stdout
    assert "averages over real tokens only" in result.stdout
    assert f"wrote {tmp_path / 'ours'}: config.json, model.safetensors" in result.stdout
    result = convert("--to_original", "true", tmp_path / "ours", tmp_path / "back")
    assert result.returncode == 0, result.stderr
    assert "averages" not in result.stdout
    assert (tmp_path / "back" / "model.safetensors").is_file()


def test_an_error_is_one_sentence(tmp_path):
    result = convert(tmp_path / "nowhere", tmp_path / "ours")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and "nowhere" in result.stderr and "Traceback" not in result.stderr


def test_an_existing_directory_is_not_overwritten(tmp_path):
    config = original.config()
    source = original.write(tmp_path / "source", config, original.state(config))
    result = convert(source, source)
    assert result.returncode == 1
    assert result.stderr == f"error: {source} exists and is not an empty directory\n"


def test_an_encoder_of_the_bert_family_is_converted(tmp_path):
    write(tmp_path / "source", "bert", "ForPreTraining")
    result = convert(tmp_path / "source", tmp_path / "ours")
    assert result.returncode == 0, result.stderr
    assert "UltraFastBertForMaskedLM: 2 layers of width 24, feedforward dense-40," in result.stdout
    assert "its outputs differ from the original's by at most" in result.stdout
    assert "wrote" in result.stdout and "tokenizer.json" in result.stdout
    assert "without an equivalent here: bert.pooler.dense.bias" in result.stderr and "Loading" not in result.stderr
    result = convert(tmp_path / "ours", tmp_path / "again")
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {tmp_path / 'ours'} is a model of this package already")
    result = convert("--to_original", "true", tmp_path / "ours", tmp_path / "back")
    assert result.returncode == 1 and "position_embedding is 'learned'" in result.stderr


def test_other_models_are_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "modernbert", "architectures": ["ModernBertModel"]}')
    result = convert(tmp_path, tmp_path / "ours")
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {tmp_path / 'config.json'}: model_type is 'modernbert', which has")
    assert "gated feedforward layers; only bert, roberta, " in result.stderr
