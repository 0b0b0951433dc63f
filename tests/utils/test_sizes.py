"""Sizes of layers: what people write is what comes back, and everything else is refused by name."""

import pytest

from ultrafastbert.utils.sizes import DenseSize, TreeSize, parse_size


@pytest.mark.parametrize("text", ["1x11", "3072x0", "8x8", "dense-3072", "1x30", "1x7x32", "1x0x5", "none"])
def test_round_trip(text):
    assert str(parse_size(text)) == text


def test_numbers_of_the_paper():
    size = TreeSize.parse("1x11")
    assert (size.nodes, size.neurons, size.used) == (4095, 4095, 12)
    size = TreeSize(8, 8)
    assert (size.nodes, size.neurons, size.used) == (511, 4088, 72)
    assert DenseSize(3072).used == 3072
    size = TreeSize.parse("1x7x32")
    assert (size.nodes, size.neurons, size.used) == (127 + 128 * 32, 127 + 128 * 32, 39)
    assert parse_size("none").neurons == parse_size("none").used == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1x",
        "x1",
        "0x3",
        "1x31",
        "1x-1",
        "1X3",
        "dense",
        "dense-0",
        "-1x3",
        "2x3x2",
        "1x31x2",
        "1x3x0",
        "1x3x2x1",
        "1.5x3",
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError) as caught:
        parse_size(text, "model.fff")
    assert str(caught.value).startswith(f"model.fff is {text!r}; it should be TREESxDEPTH")
