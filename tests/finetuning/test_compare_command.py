"""The command line of `scripts/compare_glue.py`."""

import json

import pytest

from ultrafastbert.cli import main


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the script in a directory where `a/glue.json` and `b/glue.json` are."""
    for name, value in (("a", 0.5), ("b", 0.625)):
        scores = {"RTE": {"metric": "accuracy", "values": [value], "data_fingerprint": "x"}}
        (tmp_path / name).mkdir()
        content = {"format": 1, "name": name, "settings": {}, "scores": scores}
        (tmp_path / name / "glue.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        main("plot", [*arguments])

    return run


def test_prints_the_table_and_draws_the_picture(run, tmp_path, capsys):
    run("a", "b/glue.json")
    assert "| RTE | accuracy | 1 | 50.0 [50.0, 50.0] | 62.5 [62.5, 62.5] | -12.5 |" in capsys.readouterr().out
    assert (tmp_path / "compare_glue.png").read_bytes().startswith(b"\x89PNG")

    run("b", "a", "--output", "plots/pair.png")  # the picture is where it is said to be
    assert "+12.5" in (out := capsys.readouterr().out) and "plots/pair.png" in out
    assert (tmp_path / "plots" / "pair.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "nowhere"], "error: nowhere cannot be read"),
        (["a", "b", "--output", "b/glue.json"], r"error: output is b.glue.json; it should end in .png"),
        (["a", "./a"], "error: .* same file"),
    ],
)
def test_errors_are_messages(run, arguments, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        run(*arguments)
    assert not (tmp_path / "compare_glue.png").exists()
