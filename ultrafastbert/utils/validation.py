"""One way to check a value: `check(name, value, rule)`, whose error names the value and what it should be."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What a value should be.

    Attributes:
        holds: whether a value follows the rule; it may raise a TypeError for a value of a wrong type.
        expected: completes the sentence "it should be ...".
    """

    holds: Callable[[Any], bool]
    expected: str


POSITIVE = Rule(lambda value: value > 0, "greater than 0")
NOT_NEGATIVE = Rule(lambda value: 0 <= value < float("inf"), "a finite number, at least 0")
FRACTION = Rule(lambda value: 0 <= value <= 1, "from 0 to 1")
PROPER_FRACTION = Rule(lambda value: 0 < value < 1, "greater than 0 and less than 1")
BETAS = Rule(lambda value: len(value) == 2 and all(0 <= beta < 1 for beta in value), "two numbers in [0, 1)")
NOT_EMPTY = Rule(bool, "a non-empty value")


def at_least(least: float) -> Rule:
    """Numbers from `least` on."""
    return Rule(lambda value: value >= least, f"at least {least}")


def between(least: float, most: float) -> Rule:
    """Numbers from `least` to `most`, both included."""
    return Rule(lambda value: least <= value <= most, f"from {least} to {most}")


def integer(least: int, most: int | None = None) -> Rule:
    """Integers (no booleans) from `least` to `most`."""
    limits = f"at least {least}" if most is None else f"from {least} to {most}"

    def holds(value: Any) -> bool:
        return type(value) is int and value >= least and (most is None or value <= most)

    return Rule(holds, f"an integer, {limits}")


def one_of(*choices: Any) -> Rule:
    """One of these values."""
    return Rule(lambda value: value in choices, f"one of {', '.join(map(str, choices))}")


def check(name: str, value: Any, rule: Rule, error: type[Exception] = ValueError) -> None:
    """Raises `error` with the message "NAME is VALUE; it should be ..." if `value` does not follow the rule."""
    try:
        holds = rule.holds(value)
    except TypeError:
        holds = False
    if not holds:
        raise error(f"{name} is {value!r}; it should be {rule.expected}")


def check_fields(
    arguments: Any, rule: Rule, *names: str, section: str = "", error: type[Exception] = ValueError
) -> None:
    """`check` for several attributes of `arguments`; those that are None, an option not given, are skipped.

    Args:
        arguments: a dataclass of options.
        rule: for all of them.
        names: of the attributes.
        section: the options' section on the command line, for the message, such as `train`.
        error: raised for the first value that does not follow the rule.
    """
    for name in names:
        value = getattr(arguments, name)
        if value is not None:
            check(f"{section}.{name}" if section else name, value, rule, error)
