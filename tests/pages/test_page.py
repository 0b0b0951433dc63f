"""Elements and pages: what is escaped, and what the policy of a page forbids."""

import colorsys
import re

import pytest

from tests.pages.helpers import HOSTILE, check_page, needs_chromium, visit
from ultrafastbert.pages.page import Html, build_page, element, join, read_asset, table


def test_content_and_attributes_are_escaped():
    assert element("p", "a<b", element("b", "c"), 3, class_="x'\"<", data_x="&") == (
        '<p class="x&#x27;&quot;&lt;" data-x="&amp;">a&lt;b<b>c</b>3</p>'
    )
    assert element("input", checked=True, disabled=False, value=None) == "<input checked>"
    assert join("<", Html("<br>")) == "&lt;<br>"


def test_a_page_has_its_data_and_nothing_else():
    data = {HOSTILE: [HOSTILE, None, 1.5, {"x": "\u2029 \ud800"}]}
    body = element("main", element("p", HOSTILE), table([HOSTILE], [[HOSTILE]], HOSTILE))
    page = check_page(build_page(HOSTILE, body, data, "charts.js"))
    assert page.data == data
    assert page.texts.count(HOSTILE) == 4
    with pytest.raises(ValueError):
        build_page("", body, {"x": float("nan")}, "charts.js")


def luminance(red, green, blue):
    """Of a color in sRGB, as WCAG 2 defines it."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in (red, green, blue)]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted(luminance(*color) for color in (one, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_have_the_contrast_that_wcag_asks_for(scheme):
    block = re.findall(r":root \{(.*?)\}", read_asset("style.css"), re.DOTALL)[scheme == "dark"]
    variables = dict(re.findall(r"--(\w+): (\S+?);", block))
    colors = {
        name: [int(value[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        for name, value in variables.items()
        if value.startswith("#")
    }
    for text in ("fg", "muted", "accent", "warn"):
        assert min(contrast(colors[text], colors[ground]) for ground in ("bg", "panel")) >= 4.5, text
    assert contrast(colors["fg"], colors["mark"]) >= 4.5
    lines = {f"s{index}": colors[f"s{index}"] for index in range(8)}
    for hue in range(25, 281, 5):
        lines[f"hue {hue}"] = colorsys.hls_to_rgb(hue / 360, int(variables["ramp"].strip("%")) / 100, 0.75)
    assert {
        name: contrast(line, colors["bg"]) for name, line in lines.items() if contrast(line, colors["bg"]) < 3
    } == {}


@needs_chromium
def test_the_policy_stops_what_would_get_in(tmp_path):
    page = build_page("", element("main", "text"), {"charts": [], "runs": []}, "charts.js")
    assert visit(page, tmp_path, 400)["console"] == []
    inside = b"<script>hacked = 1</script><img src='http://127.0.0.1:9/x' onerror='hacked = 1'><p style='color: red'>"
    console = "\n".join(visit(page.replace(b"</main>", inside + b"</main>"), tmp_path, 400)["console"])
    assert all(name in console for name in ("script-src", "img-src", "style-src"))
