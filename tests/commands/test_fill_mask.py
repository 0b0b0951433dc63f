"""`ultrafastbert fill-mask`: what it prints, and errors as one sentence."""

from pathlib import Path

import pytest

from ultrafastbert.cli import main

MODEL = str(Path(__file__).parents[1] / "fixtures" / "v0.1" / "final")


def test_predictions_are_printed_for_each_text(capsys):
    main("fill-mask", [MODEL, "a [MASK]", "the [MASK] b", "--top_k", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[4]] == ["a [MASK]", "the [MASK] b"] and len(lines) == 8
    for start in (1, 5):
        scores = [float(line.split("%")[0]) for line in lines[start : start + 3]]
        assert scores == sorted(scores, reverse=True) and all(0 <= score <= 100 for score in scores)


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        ([MODEL, "no mask"], 1, "text 'no mask' has 0 masks; it should have one [MASK]"),
        ([MODEL, "a [MASK]", "[MASK] [MASK]"], 1, "text '[MASK] [MASK]' has 2 masks; it should have one [MASK]"),
        (["nowhere/at/all", "a [MASK]"], 1, "model nowhere/at/all: no such directory"),
        ([MODEL, "a [MASK]", "--top_k", "99999"], 1, "top_k is 99999; it should be at most"),
        ([MODEL, "a [MASK]", "--top_k", "0"], 2, "top_k is 0; it should be greater than 0"),
    ],
)
def test_an_error_is_one_sentence(capsys, arguments, code, message):
    with pytest.raises(SystemExit) as error:
        main("fill-mask", arguments)
    assert error.value.code == code
    output = capsys.readouterr()
    assert f"error: {message}" in output.err and output.out == ""
