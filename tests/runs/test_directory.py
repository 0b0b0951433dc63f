"""Where a run starts from, and that it never mixes its files with those of another run."""

import shutil

import pytest

from ultrafastbert.runs import directory as run_directory
from ultrafastbert.runs.directory import check_disk, find_start, move_aside, open_run_directory
from ultrafastbert.utils.errors import UserError


def make_checkpoint(run, step):
    path = run / "checkpoints" / f"step-{step}"
    path.mkdir(parents=True)
    (path / "checkpoint.json").write_text('{"files": {}}')
    return path


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_auto_resumes_from_the_newest_checkpoint(tmp_path):
    assert find_start(tmp_path, "auto") is None
    make_checkpoint(tmp_path, 9)
    newest = make_checkpoint(tmp_path, 10)
    assert find_start(tmp_path, "auto") == newest
    move_aside(tmp_path, newest)
    assert names(tmp_path) == ["checkpoints"]


def test_a_new_run_moves_an_earlier_one_aside(tmp_path):
    for number in (1, 2):
        make_checkpoint(tmp_path, 9)
        (tmp_path / "metrics.jsonl").write_text(str(number))
        (tmp_path / "notes.txt").write_text("the user's own")
        assert find_start(tmp_path, "never") is None
        move_aside(tmp_path, None)
    assert names(tmp_path) == ["earlier-1", "earlier-2", "notes.txt"]
    assert (tmp_path / "earlier-1" / "metrics.jsonl").read_text() == "1"
    assert (tmp_path / "earlier-2" / "checkpoints" / "step-9").is_dir()


def test_a_model_without_checkpoints_is_moved_aside_too(tmp_path):
    (tmp_path / "final").mkdir()
    assert find_start(tmp_path, "auto") is None
    move_aside(tmp_path, None)
    assert names(tmp_path) == ["earlier-1"]


def test_files_of_a_run_without_checkpoints_are_not_moved(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").write_text("")
    move_aside(tmp_path, None)
    assert names(tmp_path) == ["checkpoints", "metrics.jsonl"]


def test_damaged_checkpoints_are_moved_aside(tmp_path):
    """Otherwise they would count as the newest, and new checkpoints would be removed."""
    good = make_checkpoint(tmp_path, 1)
    (make_checkpoint(tmp_path, 2) / "checkpoint.json").unlink()
    assert find_start(tmp_path, "auto") == good
    move_aside(tmp_path, good)
    assert names(tmp_path / "checkpoints") == ["step-1"]
    assert names(tmp_path / "earlier-1" / "checkpoints") == ["step-2"]


def test_a_path_is_a_checkpoint_or_a_run(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    new.mkdir()
    first, second = make_checkpoint(old, 1), make_checkpoint(old, 2)
    assert find_start(new, str(first)) == first
    assert find_start(new, str(old)) == second
    move_aside(new, first)
    assert names(old / "checkpoints") == ["step-1", "step-2"]


def test_going_back_within_a_run_moves_later_checkpoints_aside(tmp_path):
    first = make_checkpoint(tmp_path, 1)
    make_checkpoint(tmp_path, 2)
    assert find_start(tmp_path, str(first)) == first
    move_aside(tmp_path, first)
    assert names(tmp_path / "checkpoints") == ["step-1"]
    assert names(tmp_path / "earlier-1" / "checkpoints") == ["step-2"]


@pytest.mark.parametrize("resume", ["nowhere", "nowhere/step-3", "Auto"])
def test_a_path_without_a_checkpoint_is_refused(tmp_path, resume):
    with pytest.raises(UserError, match=resume):
        find_start(tmp_path, resume)


def test_a_directory_has_one_run_at_a_time(tmp_path):
    for _ in range(2):
        with (
            open_run_directory(tmp_path / "run"),
            pytest.raises(UserError, match="in use by another run"),
            open_run_directory(tmp_path / "run"),
        ):
            pass


def test_other_files_stay(tmp_path):
    for name in (".bashrc.old", ".notes.tmp", "checkpoints"):
        (tmp_path / name).mkdir()
    with open_run_directory(tmp_path):
        assert names(tmp_path) == [".bashrc.old", ".lock", ".notes.tmp", "checkpoints"]


def test_a_directory_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run cannot be written"), open_run_directory(tmp_path / "file" / "run"):
        pass


def test_too_small_a_disk_is_found_before_training(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=40 * 10**6)
    monkeypatch.setattr(run_directory.shutil, "disk_usage", lambda path: usage)
    check_disk(tmp_path, parameters=10**6, keep=2)  # 3 x 12 MB + 4 MB
    with pytest.raises(UserError, match=r"0\.04 GB free; 0\.05 GB are needed for 3 checkpoints"):
        check_disk(tmp_path, parameters=10**6, keep=3)
    for step in (1, 2, 3):
        make_checkpoint(tmp_path, step)
    check_disk(tmp_path, parameters=10**6, keep=3)  # these exist already; one at a time is replaced
