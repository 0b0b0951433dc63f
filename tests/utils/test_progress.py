"""Progress as a bar on a terminal and as lines elsewhere."""

import sys

import pytest
from tqdm import tqdm

from ultrafastbert.utils import progress
from ultrafastbert.utils.progress import ProgressLines, duration, progress_bar, track


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar(3, "cases") as bar:
        assert isinstance(bar, tqdm)


def test_a_file_gets_a_line_at_most_every_20_seconds(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress_bar(100, "timing", "case", initial=10) as bar:
        assert isinstance(bar, ProgressLines)
        for _ in range(50):
            now[0] += 1
            bar.update()
        bar.set_description_str("still timing")
        bar.write("a message")
    out, err = capsys.readouterr()
    assert out == "a message\n" and "\r" not in err
    assert [line.split("[")[0].strip() for line in err.splitlines()] == ["timing:  30% 30/100", "timing:  50% 50/100"]
    assert "00:20<01:10" in err  # 20 units in 20 seconds, 70 remain
    assert (bar.n, bar.total, bar.desc) == (60, 100, "still timing")


def test_a_layout_is_used_without_its_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    bar = progress_bar(1.0, "", bar_format="{percentage:3.0f}% of the budget |{bar}| {desc}")
    bar.set_description_str("step 7")
    bar.update(0.25)
    assert capsys.readouterr().err == " 25% of the budget | step 7\n"


def test_an_unknown_total_is_counted(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    progress_bar(None, "reading", "B", unit_scale=True).update(2_500_000)
    assert "reading: 2.50MB [" in capsys.readouterr().err


def test_disabled_progress_shows_nothing(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    with progress_bar(3, "cases", enabled=False) as bar:
        bar.update()
    assert capsys.readouterr() == ("", "")


def test_track_yields_every_item():
    assert list(track("abc", "letters")) == ["a", "b", "c"]


@pytest.mark.parametrize("seconds, text", [(4.6, "5s"), (75, "1m 15s"), (3600, "1h 00m"), (90061, "25h 01m")])
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text
