"""What the models of a run fill into masks: the same as transformers' pipeline, for each model that is there."""

import shutil
from pathlib import Path

import pytest
from transformers import pipeline

from ultrafastbert.inspection.fills import fill_over_training

TEXTS = ["w1 w2 [MASK] w4", "[MASK] w9"]


def test_fills_are_those_of_the_pipeline(small_run):
    models, remarks = fill_over_training(small_run, TEXTS, top=4)
    assert [(model["model"], model["step"]) for model in models] == [
        *(("checkpoints/step-4", 4), ("checkpoints/step-8", 8), ("final", 12))
    ]
    assert remarks == []
    fill = pipeline("fill-mask", str(small_run / "final"), top_k=4)
    for text, found in zip(TEXTS, models[-1]["fills"], strict=True):
        expected = fill(text)
        assert [token for token, _ in found] == [prediction["token_str"] for prediction in expected]
        assert [value for _, value in found] == pytest.approx([prediction["score"] for prediction in expected])
    assert models[0]["fills"] != models[-1]["fills"]


def test_models_that_cannot_be_asked_are_named(small_run, tmp_path):
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    (run / "checkpoints" / "step-8" / "model.safetensors").write_bytes(b"damaged")
    (run / "final" / "model.safetensors").unlink()  # so the last checkpoint stands for the end of the run
    models, remarks = fill_over_training(run, TEXTS)
    assert [model["model"] for model in models] == ["checkpoints/step-4", "checkpoints/step-12"]
    [remark] = remarks
    assert remark.startswith("checkpoints/step-8 could not be asked: ") and "model.safetensors changed" in remark


def test_a_mask_beyond_the_positions_is_named(small_run):
    models, remarks = fill_over_training(small_run, ["w1 " * 40 + "[MASK]"])
    assert models == [] and len(remarks) == 3 and "is not within its 32 positions" in remarks[0]
