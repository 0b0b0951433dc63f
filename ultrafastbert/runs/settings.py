"""Comparison of the settings that a checkpoint or a result was written with to those of today."""

from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.settings import flatten


def changed_settings(before: dict, now: dict) -> dict[str, tuple[object, object]]:
    """The settings whose values differ: `{"train.lr": (1e-3, 2e-3)}`, sorted by name; None where a side lacks one.

    Both arguments are nested and of JSON types; `before` may have earlier names of options.
    """
    before, now = flatten(before), flatten(now)
    names = sorted({*before, *now})
    return {name: (before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)}


def refuse_changes(where: str, changes: dict[str, tuple[object, object]], remedy: str) -> None:
    """Raises a UserError if there are any: "WHERE has different settings: NAME was OLD and is NEW; .... REMEDY"."""
    if changes:
        text = "; ".join(f"{name} was {old!r} and is {new!r}" for name, (old, new) in changes.items())
        raise UserError(f"{where} has different settings: {text}. {remedy}")
