"""Comparison of settings."""

import pytest

from ultrafastbert.runs.settings import changed_settings, refuse_changes
from ultrafastbert.utils.errors import UserError


def test_settings_that_differ_are_found_under_their_current_names():
    before = {"seed": 1, "train": {"lr": 0.1, "eval_rows": 8, "old": True}}
    now = {"seed": 1, "train": {"lr": 0.2, "eval_sequences": 8, "new": [1]}}
    assert changed_settings(before, now) == {
        "train.lr": (0.1, 0.2),
        "train.new": (None, [1]),
        "train.old": (True, None),
    }


def test_changes_are_refused_with_a_remedy():
    refuse_changes("checkpoint x", {}, "Choose another output_dir.")
    with pytest.raises(UserError) as error:
        refuse_changes("checkpoint x", {"seed": (0, 1), "fff": ("1x2", None)}, "Choose another output_dir.")
    assert str(error.value) == (
        "checkpoint x has different settings: seed was 0 and is 1; fff was '1x2' and is None."
        " Choose another output_dir."
    )
