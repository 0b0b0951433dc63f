"""`starts.jsonl` of a run: a line for each time that it started or resumed, with its device and versions."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def record_start(path: Path, values: dict[str, Any]) -> None:
    """Appends a line of `values`, of JSON types, and of the time in UTC.

    A file that cannot be written gives a warning: the run does not depend on it.
    """
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds")} | values) + "\n"
    try:
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":  # a run was killed while it wrote its line
                    line = "\n" + line
            file.write(line.encode())
    except OSError as error:
        print(f"warning: {path} could not be written: {error}", flush=True)


def read_starts(path: Path, broken: list[int] | None = None) -> list[dict[str, Any]]:
    """The lines of a `starts.jsonl`, the first start first; [] if there is no file.

    Args:
        path: of the file.
        broken: gets the numbers of lines that are not starts, such as one that a killed run wrote in part. They are
            skipped.
    """
    starts = []
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.is_file() else [], 1):
        try:
            values = json.loads(line) if line else None
            if values is not None and type(values["step"]) is not int:
                raise ValueError("step is not a number")
            starts += [values] if values is not None else []
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            if broken is not None:
                broken.append(number)
    return starts
