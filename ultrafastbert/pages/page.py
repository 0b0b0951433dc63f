"""The parts of a self-contained HTML page: elements, data, and the page around them.

Notable:
- Text becomes an element's content or attribute only by `element`, and data only by `build_page`; both escape it.
- The page's Content-Security-Policy allows the page's own style and script, by their hashes, and nothing else: no
  other script, no request. So even a page with hostile text in it could not run or load anything.
"""

import base64
import hashlib
import html
import json
from importlib import resources
from typing import Any

VOID = {"input", "meta", "br"}
"""Elements without content and end tag."""


class Html(str):
    """Text that is HTML already, and is not escaped again."""


def element(tag: str, *content: object, **attributes: object) -> Html:
    """An element; content and values of attributes are escaped, except for content that is `Html`.

    Args:
        tag: name of the element.
        content: strings, or what `str` makes of the objects.
        attributes: with `_` for `-`, and a `_` at the end if the name is a word of Python. True gives an attribute
            without a value, None and False none.
    """
    words = [tag]
    for name, value in attributes.items():
        if value is not None and value is not False:
            name = name.rstrip("_").replace("_", "-")
            words.append(name if value is True else f'{name}="{html.escape(str(value))}"')
    start = f"<{' '.join(words)}>"
    return Html(start) if tag in VOID else Html(f"{start}{join(*content)}</{tag}>")


def join(*content: object) -> Html:
    """Pieces of content after each other, escaped unless they are `Html`."""
    return Html("".join(piece if isinstance(piece, Html) else html.escape(str(piece)) for piece in content))


def table(header: list[str], rows: list[list[str]], label: str) -> Html:
    """A table in a box that scrolls by itself if the table is wider than the page, also with the keyboard."""
    head = element("tr", *(element("th", cell, scope="col") for cell in header))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    ]
    content = element("table", element("thead", head), element("tbody", *body))
    return element("div", content, class_="wide", tabindex="0", role="region", aria_label=label)


def notes(lines: list[str], label: str) -> Html:
    """A list of remarks; nothing without any."""
    items = element("ul", *(element("li", line) for line in lines))
    return element("section", items, class_="notes", aria_label=label) if lines else Html("")


def build_page(title: str, body: Html, data: Any, *scripts: str) -> bytes:
    """A page in UTF-8 with all that it needs.

    Args:
        title: of the window.
        body: content of the page.
        data: of JSON types, for the scripts, which find it in the element `data`.
        scripts: names of JavaScript files of this package.
    """
    style, script = read_asset("style.css"), "\n".join(map(read_asset, scripts))
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'"
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=f"{policy}; form-action 'none'"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(style)),
    ]
    parts = [
        element("head", *head),
        "\n",
        element("body", body, "\n", _data(data), "\n", element("script", Html(script))),
    ]
    page = f"<!DOCTYPE html>\n{element('html', *parts, lang='en')}\n"
    return page.encode(errors="replace")  # a path or an option may have bytes that are not UTF-8


def read_asset(name: str) -> str:
    """A file of this package that pages contain."""
    return resources.files("ultrafastbert.pages").joinpath(name).read_text(encoding="utf-8")


def _data(data: Any) -> Html:
    """Data as JSON, without any character that means something in HTML."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return element("script", Html(text), type="application/json", id="data")


def _hash(text: str) -> str:
    """The source of a Content-Security-Policy that allows exactly this inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
