"""Elements and pages: what is escaped, and what the policy of a page forbids."""

import pytest

from tests.pages.helpers import HOSTILE, check_page, needs_chromium, visit
from ultrafastbert.pages.page import Html, build_page, element, join, table


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


@needs_chromium
def test_the_policy_stops_what_would_get_in(tmp_path):
    page = build_page("", element("main", "text"), {"charts": [], "runs": []}, "charts.js")
    assert visit(page, tmp_path, 400)["console"] == []
    inside = b"<script>hacked = 1</script><img src='http://127.0.0.1:9/x' onerror='hacked = 1'><p style='color: red'>"
    console = "\n".join(visit(page.replace(b"</main>", inside + b"</main>"), tmp_path, 400)["console"])
    assert all(name in console for name in ("script-src", "img-src", "style-src"))
