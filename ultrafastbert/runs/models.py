"""Where a model is that a person names: a directory, a run of pretraining, or a name on the Hub."""

import difflib
import re
from pathlib import Path

from ultrafastbert.runs.checkpoints import MANIFEST
from ultrafastbert.runs.directory import CHECKPOINTS, FINAL, run_of
from ultrafastbert.utils.errors import UserError


def locate_model(name: str, option: str = "model") -> str:
    """What `from_pretrained` loads for `name`: of the directory of a run its final model, else `name` itself.

    Args:
        name: a directory, or a name on the Hub.
        option: for messages.

    Raises:
        UserError: a path that does not exist, the directory of a run without a final model, or a checkpoint, which
            has no tokenizer. The message says what to write instead.
    """
    path = Path(name).expanduser()
    if not path.exists():
        if _is_path(name, path):
            raise UserError(f"{option} {name}: no such directory{_suggestion(path)}")
        return name
    if (path / MANIFEST).is_file():
        final = run_of(path) / FINAL
        instead = f"use {final}" if final.is_dir() else "let the run end, which writes final/"
        raise UserError(f"{option} {name} is a checkpoint of pretraining, to resume from; {instead}")
    if not (path / "config.json").exists():
        if (path / FINAL).is_dir():
            return str(path / FINAL)
        if (path / CHECKPOINTS).is_dir():
            raise UserError(f"{option} {name} is a run that has not ended; its model will be {path / FINAL}")
    return str(path)


def _is_path(name: str, path: Path) -> bool:
    """Whether a name that does not exist is meant as a path; on the Hub names are NAME or OWNER/NAME."""
    return (
        not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)
        or name.startswith(".")
        or (len(path.parts) == 2 and path.parent.is_dir())
    )


def _suggestion(path: Path) -> str:
    """The existing path that is closest: a directory of a similar name, and its final model if it is a run."""
    for known in path.parents:
        if known.is_dir():
            wrong = path.relative_to(known).parts[0]
            names = [entry.name for entry in known.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
            close = difflib.get_close_matches(wrong, names, n=1)
            candidate = known.joinpath(*close)
            if (candidate / FINAL).is_dir():
                candidate = candidate / FINAL
            return f"; did you mean {candidate}?" if candidate != Path() and (close or candidate != known) else ""
    return ""
