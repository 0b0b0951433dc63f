"""A model is found where a person says it is, and a mistyped path is told as one."""

import pytest

from ultrafastbert.runs.models import locate_model
from ultrafastbert.utils.errors import UserError


@pytest.fixture
def directory(tmp_path, monkeypatch):
    for name in ("out/q/final", "out/q/checkpoints/step-4", "out/begun/checkpoints/step-4", "models/tiny"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("out/q/final/config.json", "models/tiny/config.json"):
        (tmp_path / name).write_text("{}")
    for run in ("q", "begun"):
        (tmp_path / "out" / run / "checkpoints" / "step-4" / "checkpoint.json").write_text("{}")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "name, found",
    [
        ("out/q/final", "out/q/final"),
        ("out/q", "out/q/final"),
        ("models/tiny", "models/tiny"),
        ("bert-base-uncased", "bert-base-uncased"),
        ("google/bert", "google/bert"),
    ],
)
def test_what_is_loaded(directory, name, found):
    assert locate_model(name) == found


@pytest.mark.parametrize(
    "name, message",
    [
        ("out/q/fianl", r"no such directory; did you mean out/q/final\?"),
        ("out/qq/final", r"no such directory; did you mean out/q/final\?"),
        ("out/qq", r"no such directory; did you mean out/q/final\?"),
        ("models/tny", r"no such directory; did you mean models/tiny\?"),
        ("./nothing", "no such directory$"),
        ("/no/such/place", "no such directory"),
        ("out/q/checkpoints/step-4", "is a checkpoint of pretraining, to resume from; use .*out/q/final"),
        ("out/begun/checkpoints/step-4", "is a checkpoint of pretraining, to resume from; let the run end"),
        ("out/begun", "is a run that has not ended; its model will be out/begun/final"),
    ],
)
def test_what_is_refused(directory, name, message):
    with pytest.raises(UserError, match=f"model {name}:? {message}"):
        locate_model(name)
