"""Checks accept what they should, and their errors name the value, what it is, and what it should be."""

import math
from dataclasses import dataclass

import pytest

from ultrafastbert.utils.validation import (
    BETAS,
    FRACTION,
    NOT_EMPTY,
    NOT_NEGATIVE,
    POSITIVE,
    PROPER_FRACTION,
    at_least,
    between,
    check,
    check_fields,
    integer,
    one_of,
)


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        (POSITIVE, [1, 0.1], [0, -1, math.nan, "1"]),
        (NOT_NEGATIVE, [0, 3.5], [-0.1, math.nan, math.inf]),
        (FRACTION, [0, 0.5, 1], [-0.1, 1.1, math.nan]),
        (PROPER_FRACTION, [0.5], [0, 1, math.nan]),
        (BETAS, [(0.9, 0.98)], [(0.9,), (0.9, 1.0), 0.9]),
        (NOT_EMPTY, ["a", [1]], ["", []]),
        (at_least(2), [2, 3], [1, math.nan]),
        (between(1, 3), [1, 3], [0, 4]),
        (integer(1, 3), [1, 3], [0, 4, 1.0, True, "1"]),
        (integer(1), [10**9], [0]),
        (one_of("a", "b"), ["a"], ["c", 1]),
    ],
)
def test_rules(rule, right, wrong):
    for value in right:
        check("x", value, rule)
    for value in wrong:
        with pytest.raises(ValueError) as caught:
            check("x", value, rule)
        assert str(caught.value) == f"x is {value!r}; it should be {rule.expected}"


def test_fields_are_named_with_their_section_and_none_is_skipped():
    @dataclass
    class Options:
        lr: float = -1.0
        steps: int | None = None

    check_fields(Options(), POSITIVE, "steps")
    with pytest.raises(KeyError, match=r"train.lr is -1.0; it should be greater than 0"):
        check_fields(Options(), POSITIVE, "steps", "lr", section="train", error=KeyError)
