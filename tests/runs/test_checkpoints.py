"""Directories are written atomically, and damaged checkpoints are recognised."""

import pytest
import torch
from accelerate import Accelerator

from ultrafastbert.runs import checkpoints
from ultrafastbert.runs.checkpoints import (
    MANIFEST,
    CheckpointError,
    find_checkpoint,
    numbered_checkpoints,
    read_checkpoint,
    recover,
    recover_checkpoints,
    save_checkpoint,
    write_directory,
)


@pytest.fixture
def accelerator():
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(3, 2)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    yield accelerator
    accelerator.free_memory()


def test_a_checkpoint_holds_its_content_and_the_newest_are_kept(accelerator, tmp_path):
    for step in (8, 9, 10, 11):
        save_checkpoint(accelerator, tmp_path, step, {"progress": {"step": step}}, keep=2)
    assert [path.name for path in numbered_checkpoints(tmp_path)] == ["step-10", "step-11"]
    assert find_checkpoint(tmp_path).name == "step-11"
    content = read_checkpoint(tmp_path / "step-11")
    assert content["progress"] == {"step": 11} and "model.safetensors" in content["files"]


def test_damaged_checkpoints_are_skipped(accelerator, tmp_path, capsys):
    for step in (1, 2, 3, 4):
        save_checkpoint(accelerator, tmp_path, step, {}, keep=9)
    (tmp_path / "step-4" / "model.safetensors").write_bytes(b"cut")
    (tmp_path / "step-3" / "optimizer.bin").unlink()
    (tmp_path / "step-2" / MANIFEST).write_text('{"progress": ')
    assert find_checkpoint(tmp_path) == tmp_path / "step-1"
    said = capsys.readouterr().out
    assert "skipped: " in said and "step-4 is damaged: model.safetensors" in said
    assert "step-3" in said and "step-2" in said
    (tmp_path / "step-1" / MANIFEST).write_text("[]")
    assert find_checkpoint(tmp_path) is None


def test_a_flipped_bit_is_recognised(accelerator, tmp_path):
    path = save_checkpoint(accelerator, tmp_path, 1, {}, keep=1) / "optimizer.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"optimizer\.bin"):
        read_checkpoint(tmp_path / "step-1")


def test_a_write_that_fails_leaves_the_old_directory(accelerator, tmp_path):
    def write(aside):
        (aside / "file").write_text("new")

    write_directory(tmp_path / "final", write, accelerator)

    def fail(aside):
        (aside / "file").write_text("half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_directory(tmp_path / "final", fail, accelerator)
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (tmp_path / "final" / "file").read_text() == "new"


def test_a_failure_in_one_process_fails_in_all(accelerator, tmp_path, monkeypatch):
    """Otherwise the others would wait forever."""
    monkeypatch.setattr(checkpoints, "gather_object", lambda messages: [*messages, "disk full"])
    with pytest.raises(OSError, match="another process failed: disk full"):
        write_directory(tmp_path / "final", lambda aside: None, accelerator)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_a_checkpoint_error_and_keeps_earlier_checkpoints(accelerator, tmp_path, monkeypatch):
    save_checkpoint(accelerator, tmp_path, 1, {}, keep=1)

    def fail(directory):
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(accelerator, "save_state", fail)
    with pytest.raises(CheckpointError, match="step-2 could not be written: PytorchStreamWriter"):
        save_checkpoint(accelerator, tmp_path, 2, {}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert find_checkpoint(tmp_path).name == "step-1"


def test_only_the_files_of_a_killed_run_are_removed(tmp_path):
    for name in (".final.tmp", ".final.old", "final", ".project.old", ".notes.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / ".config.yaml.tmp").write_text("")
    recover(tmp_path, ["final", "config.yaml"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".notes.tmp", ".project.old", "final"]


def test_a_directory_that_was_about_to_be_replaced_is_restored(tmp_path):
    """A kill between the two renames leaves the old directory and the new one under other names."""
    for name in (".step-7.tmp", ".step-7.old", ".step-8.tmp", "step-6"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    recover_checkpoints(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-6", "step-7"]
    assert (tmp_path / "step-7" / "name").read_text() == ".step-7.old"
