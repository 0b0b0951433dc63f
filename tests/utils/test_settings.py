"""Nested settings by dotted names."""

from ultrafastbert.utils.settings import flatten


def test_every_value_is_found_by_the_names_that_lead_to_it():
    nested = {"a": 1, "b": {"c": [2, {"d": 3}], "e": {"f": None}}, "g": {}}
    assert flatten(nested) == {"a": 1, "b.c": [2, {"d": 3}], "b.e.f": None}
