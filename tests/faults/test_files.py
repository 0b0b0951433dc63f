"""The law of damaged files: they are refused, passed over, or the result is identical; it is never a different one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.faults.damage import Damage, Damaged, sample
from ultrafastbert.pretraining.checkpointing import step_of_final
from ultrafastbert.pretraining.data.packed import VERIFIED, open_packed
from ultrafastbert.pretraining.trainer import pretrain
from ultrafastbert.runs.checkpoints import MANIFEST, CheckpointError, read_checkpoint
from ultrafastbert.runs.reporter import read_metrics
from ultrafastbert.runs.results import ResultStore
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import CHECKSUM

FIXTURE = Path(__file__).parents[1] / "fixtures" / "v0.1"


def files(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.name != VERIFIED)


def without_unknown(content, known):
    """An unknown key is ignored: a flipped bit in the name of the checksum leaves the others as they were."""
    return {name: content.get(name) for name in known if name != CHECKSUM}


def test_every_file_of_a_checkpoint(small_run, budget):
    checkpoint = small_run / "checkpoints" / "step-8"
    expected = read_checkpoint(checkpoint)
    refused = 0
    for number, file in enumerate(files(checkpoint)):
        for damage in sample(int(60 * budget), seed=number):
            with Damaged(file, damage):
                try:
                    content = read_checkpoint(checkpoint)
                except CheckpointError as error:
                    assert str(checkpoint) in str(error)
                    refused += 1
                else:
                    assert file.name == MANIFEST, f"{file.name}: {damage}"
                    assert without_unknown(content, expected) == without_unknown(expected, expected), damage
    assert refused > 60


@pytest.mark.parametrize("field, value", [("step", 10**9), ("step", float("nan")), ("step", -4), ("step", 4.0)])
@pytest.mark.parametrize("old", [False, True], ids=["of today", "of version 0.1"])
def test_impossible_progress_of_a_checkpoint_is_refused(tmp_path, small_run, field, value, old):
    checkpoint = small_run / "checkpoints" / "step-4"
    if old:
        checkpoint = FIXTURE / "run" / "checkpoints" / "step-4"
    copy = shutil.copytree(checkpoint, tmp_path / "step-4")
    content = json.loads((copy / MANIFEST).read_text())
    read_checkpoint(copy)
    content["progress"][field] = value
    (copy / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="is damaged: checkpoint.json"):
        read_checkpoint(copy)


def test_every_file_of_prepared_data(packed_directory, tmp_path, budget):
    data = shutil.copytree(packed_directory, tmp_path / "data")
    expected = open_packed(data)
    train, validation = np.array(expected.train), np.array(expected.validation)
    checked = [file for file in files(data) if file.name != "tokenizer_config.json"]
    for number, file in enumerate(checked):
        for damage in sample(int(40 * budget), seed=number):
            with Damaged(file, damage):
                try:
                    opened = open_packed(data)
                except UserError as error:
                    assert str(data) in str(error)
                else:
                    assert file.name == "manifest.json", damage
                    assert opened.fingerprint == expected.fingerprint
                    assert np.array_equal(opened.train, train) and np.array_equal(opened.validation, validation)


def test_every_file_of_the_final_model(small_run, tmp_path, budget):
    run = shutil.copytree(small_run, tmp_path / "run")
    assert step_of_final(run) == 12
    for number, file in enumerate(files(run / "final")):
        for damage in sample(int(20 * budget), seed=number):
            with Damaged(file, damage):
                assert step_of_final(run) is None or file.name == "pretraining.json", damage
                assert step_of_final(run) in (None, 12)


def test_metrics_are_read_as_far_as_they_are_whole(small_run, tmp_path, budget):
    """Damage in a number is not noticed; it changes that line alone."""
    file = shutil.copy(small_run / "metrics.jsonl", tmp_path)
    expected = read_metrics(Path(file))
    for damage in sample(int(300 * budget)):
        with Damaged(Path(file), damage):
            broken = []
            lines = read_metrics(Path(file), broken)
            changed = sum(line not in expected for line in lines)
            assert changed <= (1 if damage.kind == "bit" else 0) and len(lines) + len(broken) <= len(expected) + 1


def test_a_result_of_a_training(tmp_path, budget):
    store = ResultStore(tmp_path)
    result = {"settings": {"lr": 1e-3, "epochs": 3}, "score": 0.12345, "loss": [1.5, float("nan")], "task": "cola"}
    store.write("a.json", result)
    for damage in sample(int(300 * budget)):
        with Damaged(tmp_path / "a.json", damage):
            try:
                found = store.read("a.json")
            except UserError as error:
                assert "a.json" in str(error)
            else:
                assert repr({name: found.get(name) for name in result}) == repr(result)


def test_a_run_resumes_beside_damaged_files(small_run, make_arguments, tmp_path, capsys):
    """The newest checkpoint, the metrics and the final model are damaged at once."""
    run = shutil.copytree(small_run, tmp_path / "run")
    whole = (run / "final" / "model.safetensors").read_bytes()
    arguments = make_arguments(output_dir=run, keep_checkpoints=9)
    assert pretrain(arguments) == run / "final" and "exists and the budget is spent" in capsys.readouterr().out
    for file in ("checkpoints/step-12/checkpoint.json", "final/model.safetensors", "metrics.jsonl"):
        path = run / file
        path.write_bytes(Damage("bit", 0.4, 7).of(path.read_bytes()))
    pretrain(replace(arguments))
    said = capsys.readouterr().out
    assert "step-12 is " in said and "metrics.jsonl is damaged in line" in said and "final" in said
    assert (run / "final" / "model.safetensors").read_bytes() == whole
    assert list(run.glob("metrics.jsonl.damaged-1")) and list(run.glob("earlier-*/final"))


def test_a_damaged_final_model_is_not_a_finished_run(small_run, make_arguments, tmp_path, capsys):
    run = shutil.copytree(small_run, tmp_path / "run")
    model = run / "final" / "model.safetensors"
    whole = model.read_bytes()
    model.write_bytes(Damage("bit", 0.9, 0).of(whole))
    pretrain(make_arguments(output_dir=run, keep_checkpoints=9))
    assert model.read_bytes() == whole and "damaged" in capsys.readouterr().out
    assert (run / "earlier-1" / "final" / "model.safetensors").exists()  # no file is lost
