"""What version 0.1 saved still loads and resumes, with equal results.

`fixtures/v0.1` was written by that version, in a directory where `prepared` and `run` are, by

    PretrainArguments(
        ModelArguments("2x3", hidden_size=8, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.2),
        DataArguments(source="prepared"),
        TrainArguments(max_steps=8, lr=0.02, batch_size=8, micro_batch_size=4, log_every=2, eval_every=4,
                       checkpoint_every=4, eval_rows=16),
        output_dir="run", seed=3,
    )

`prepared` is its data, `run` what a run killed after step 4 leaves, `final` the model of the whole run.
`expected.safetensors` holds the inputs and outputs of that model: `hidden` of the encoder, and the first 32 logits in
half precision.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from ultrafastbert.cli import main
from ultrafastbert.inspection.loading import load_encoder
from ultrafastbert.pretraining.data.packed import open_packed

FIXTURE = Path(__file__).parent / "fixtures" / "v0.1"


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A copy of the fixture, which is also the working directory."""
    shutil.copytree(FIXTURE, tmp_path / "v0.1")
    monkeypatch.chdir(tmp_path / "v0.1")
    return tmp_path / "v0.1"


def test_a_model_computes_the_same():
    expected = load_file(FIXTURE / "expected.safetensors")
    model = AutoModelForMaskedLM.from_pretrained(FIXTURE / "final").eval()
    with torch.no_grad():
        inputs = {"input_ids": expected["input_ids"], "attention_mask": expected["attention_mask"]}
        hidden, logits = model.model(**inputs).last_hidden_state, model(**inputs).logits
    torch.testing.assert_close(hidden, expected["hidden"])
    torch.testing.assert_close(logits[..., :32], expected["logits"], atol=2e-3, rtol=2e-3)
    assert AutoTokenizer.from_pretrained(FIXTURE / "final").mask_token == "[MASK]"


def test_prepared_data_opens(directory):
    data = open_packed(directory / "prepared")
    assert (data.train.shape, data.validation.shape, data.vocab_size) == ((666, 16), (80, 16), 256)


@pytest.mark.parametrize("renamed", [False, True], ids=["option names of 0.1", "option names of today"])
def test_a_run_resumes(directory, renamed, capsys):
    """To the numbers of the run that was not stopped; to the bit on the processor that computed them."""
    if renamed:
        file = directory / "run" / "config.yaml"
        file.write_text(file.read_text().replace("eval_rows", "eval_sequences"))
    main("pretrain", ["--config", "run/config.yaml"])
    assert "step 4" in capsys.readouterr().out
    weights, expected = (load_file(directory / name / "model.safetensors") for name in ("run/final", "final"))
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-4, rtol=1e-4, msg=name)
    lines, whole = (
        [json.loads(line) for line in (directory / name).read_text().splitlines()]
        for name in ("run/metrics.jsonl", "metrics_of_the_whole_run.jsonl")
    )
    assert [line["step"] for line in lines] == [line["step"] for line in whole] == [2, 4, 4, 6, 8, 8]
    for line, right in zip(lines, whole, strict=True):
        for name in ("loss", "validation_loss", "validation_accuracy", "leaves_used", "leaf_entropy"):
            assert (name in line) == (name in right)
            assert line.get(name, 0) == pytest.approx(right.get(name, 0), rel=1e-4)


def test_a_checkpoint_of_a_run_that_has_not_ended_is_inspected(directory):
    encoder = load_encoder("run/checkpoints/step-4")
    assert encoder.tokens == 256 and encoder.model.config.fff_trees == 2


def test_a_checkpoint_of_a_run_that_has_ended_is_inspected(directory):
    (directory / "final").rename(directory / "run" / "final")
    shutil.rmtree(directory / "prepared")
    encoder = load_encoder("run/checkpoints/step-4")
    assert encoder.tokens == 256 and encoder.model.config.fff_trees == 2
