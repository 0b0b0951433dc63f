"""Nested settings by dotted names."""

from ultrafastbert.utils.settings import current_name, flatten, rename


def test_every_value_is_found_by_the_names_that_lead_to_it():
    nested = {"a": 1, "b": {"c": [2, {"d": 3}], "e": {"f": None}}, "g": {}}
    assert flatten(nested) == {"a": 1, "b.c": [2, {"d": 3}], "b.e.f": None}


def test_renamed_options_get_their_current_names():
    old, new = {"train": {"eval_rows": 2, "lr": 1}}, {"train": {"eval_sequences": 2, "lr": 1}}
    assert rename(old) == rename(new) == new
    assert flatten(old) == flatten(new) == {"train.eval_sequences": 2, "train.lr": 1}
    assert current_name("eval_rows") == "eval_rows"  # only the whole name
    assert rename("text") == "text"
