"""Settings of a run: nested as configuration files have them, flat as people say them, under their current names."""

from typing import Any

RENAMED = {
    "train.eval_rows": "train.eval_sequences",
    "own.validation_share": "own.validation_fraction",
}
"""Options by their earlier names, which command lines, YAML files and saved settings may still have."""


def current_name(name: str) -> str:
    """The name of an option today, such as `train.eval_sequences` for `train.eval_rows`."""
    return RENAMED.get(name, name)


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"lr": 1}} -> {"train.lr": 1}, under the current names."""
    flat = {}
    for name, value in settings.items():
        full = f"{prefix}{name}"
        flat |= flatten(value, f"{full}.") if isinstance(value, dict) else {current_name(full): value}
    return flat


def rename(settings: Any, prefix: str = "") -> Any:
    """Nested settings under their current names; anything but a dict is returned as it is."""
    if not isinstance(settings, dict):
        return settings
    return {
        current_name(f"{prefix}{name}").removeprefix(prefix): rename(value, f"{prefix}{name}.")
        for name, value in settings.items()
    }
