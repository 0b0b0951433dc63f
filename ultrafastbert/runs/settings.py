"""Comparison of the settings that a checkpoint or a result was written with to those of today."""

from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.settings import flatten


def changed_settings(before: dict, now: dict) -> dict[str, tuple[object, object]]:
    """The settings whose values differ, by their flat names; a setting that one side lacks is None there.

    Args:
        before: nested, as JSON types, under the option names of the time.
        now: nested, as JSON types (lists, not tuples).

    Returns:
        `{"train.lr": (1e-3, 2e-3)}`, sorted by name.
    """
    before, now = flatten(before), flatten(now)
    names = sorted({*before, *now})
    return {name: (before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)}


def refuse_changes(where: str, changes: dict[str, tuple[object, object]], remedy: str) -> None:
    """Raises an error if there are changes.

    Args:
        where: what has the earlier settings, such as `checkpoint out/checkpoints/step-500`.
        changes: as `changed_settings` returns them.
        remedy: a sentence that says what to do.

    Raises:
        UserError: "WHERE has different settings: NAME was OLD and is NEW; .... REMEDY"
    """
    if changes:
        text = "; ".join(f"{name} was {old!r} and is {new!r}" for name, (old, new) in changes.items())
        raise UserError(f"{where} has different settings: {text}. {remedy}")
