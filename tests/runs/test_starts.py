"""`starts.jsonl`: what was recorded is read, and a line that a killed run wrote in part is not in the way."""

from ultrafastbert.runs.starts import read_starts, record_start


def test_starts_are_read_in_order(tmp_path):
    path = tmp_path / "starts.jsonl"
    assert read_starts(path) == []
    for step in (0, 7):
        record_start(path, {"step": step, "device": "a ✓"})
    first, second = read_starts(path)
    assert (first["step"], second["step"], second["device"]) == (0, 7, "a ✓")
    assert first["time"].endswith("+00:00")


def test_a_partial_line_is_skipped_and_ended(tmp_path):
    path, broken = tmp_path / "starts.jsonl", []
    record_start(path, {"step": 0})
    with path.open("a") as file:
        file.write('{"step": 3, "ti')
    assert [start["step"] for start in read_starts(path, broken)] == [0] and broken == [2]
    record_start(path, {"step": 5})
    assert [start["step"] for start in read_starts(path)] == [0, 5]


def test_a_file_that_cannot_be_written_is_a_warning(tmp_path, capsys):
    (tmp_path / "starts.jsonl").mkdir()
    record_start(tmp_path / "starts.jsonl", {"step": 0})
    assert capsys.readouterr().out.startswith(f"warning: {tmp_path / 'starts.jsonl'} could not be written: ")
    assert read_starts(tmp_path / "starts.jsonl") == []
