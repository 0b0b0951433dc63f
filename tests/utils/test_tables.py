"""Markdown tables."""

import pytest

from ultrafastbert.utils.tables import markdown_table


def test_a_table():
    text = markdown_table(["name", 1], [["a|b", 2.5], ["", None]])
    assert text == "| name | 1 |\n| --- | --- |\n| a\\|b | 2.5 |\n|  | None |"


def test_rows_fit_the_header():
    with pytest.raises(ValueError, match="a row has 1 cells; it should have 2"):
        markdown_table(["a", "b"], [["c"]])
