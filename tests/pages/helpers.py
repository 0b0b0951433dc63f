"""Reading pages: their elements with html.parser, and what a headless Chromium makes of them if there is one."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from ultrafastbert.pages.page import VOID

EXPECTED = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "main",
    "header",
    "section",
    "div",
    "h1",
    "h2",
    "h3",
    "p",
    "ul",
    "li",
    "dl",
    "dt",
    "dd",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "figure",
    "small",
    "details",
    "summary",
    "fieldset",
    "legend",
    "label",
    "input",
    "select",
    "option",
    "button",
    "noscript",
    "script",
}
"""All elements that a page has before its script runs."""
HOSTILE = "</script><script>hacked=1</script><img src='x' onerror=\"hacked=1\">&lt;<!-- ]]> \u2028 'w1' \"w2\" "
"""Text that would become elements if it were not escaped."""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


class Page(HTMLParser):
    """The elements of a page, its text outside of scripts and styles, and its data."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.texts, self.raw = [], [], [], {"script": [], "style": []}
        self.feed(page.decode())
        assert not self.open, f"elements without an end: {self.open}"
        self.text = " ".join(self.texts)
        self.data = json.loads(self.raw["script"][0])

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
            if tag in self.raw:
                self.raw[tag].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in self.raw:
            self.raw[self.open[-1]][-1] += data
        else:
            self.texts.append(data)

    def cells(self):
        """The attributes of all elements, as (element, name, value)."""
        return [(tag, name, value) for tag, attributes in self.elements for name, value in attributes.items()]


def check_page(page):
    """Whether a page is self-contained: no other elements, no handlers, nothing fetched, and a policy that says so."""
    parsed = Page(page)
    assert {tag for tag, _ in parsed.elements} <= EXPECTED
    assert [tag for tag, _ in parsed.elements].count("script") == 2
    for tag, name, value in parsed.cells():
        assert name not in ("src", "href", "srcset", "style", "action") and not name.startswith("on"), (tag, name)
        assert not re.match(r"\s*(https?:|data:|javascript:|//)", value or ""), (tag, name, value)
    [style], [_, script] = parsed.raw["style"], parsed.raw["script"]
    assert not re.search(
        r"url\((?!#)|@import|fetch\(|XMLHttpRequest|import\(|innerHTML|insertAdjacentHTML|eval", style
    )
    assert not re.search(
        r"fetch\(|XMLHttpRequest|import\(|innerHTML|insertAdjacentHTML|eval\(|document\.write", script
    )
    [policy] = [a["content"] for tag, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy"]
    allowed = dict(part.split(" ", 1) for part in policy.split("; "))
    assert allowed == {
        "default-src": "'none'",
        "script-src": hash_of(script),
        "style-src": hash_of(style),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return parsed


def hash_of(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def visit(page, directory, width, script="", dark=False):
    """Opens a page in Chromium, in a frame of this width, and runs a script in the frame's parent.

    The script has the frame's `window` and `page` (its document), and returns JSON. Returns `result`, `overflow`, by
    how many pixels the page is wider than its frame, and `console`, the messages there.
    """
    wrapper = directory / "visit.html"
    wrapper.write_text(f"""<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
<iframe style="border:0;width:{width}px;height:900px" srcdoc="{html.escape(page.decode())}"></iframe>
<pre id="result"></pre><script>
onload = () => setTimeout(() => {{
  const window = document.querySelector("iframe").contentWindow, page = window.document;
  const key = (node, key) => node.dispatchEvent(new window.KeyboardEvent("keydown", {{ key, bubbles: true }}));
  const input = (node, value) => {{
    node.value = value;
    node.dispatchEvent(new window.Event(node.tagName === "SELECT" ? "change" : "input", {{ bubbles: true }}));
  }};
  let result;
  try {{ result = (() => {{ {script} }})(); }} catch (error) {{ console.error(`in the test: ${{error.stack}}`); }}
  for (const details of page.querySelectorAll("details")) details.open = true;
  const overflow = page.documentElement.scrollWidth - window.innerWidth;
  document.getElementById("result").textContent = JSON.stringify({{ result, overflow, hacked: typeof window.hacked }});
}}, 200);
</script>""")
    options = ["--no-sandbox", "--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    options += ["--virtual-time-budget=2000", f"--user-data-dir={directory / 'profile'}", "--dump-dom"]
    options += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run([CHROMIUM, *options, wrapper.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1], done.stderr
    content = json.loads(html.unescape(found[1]))
    assert content["hacked"] == "undefined"
    return content | {"console": [line for line in done.stderr.splitlines() if "CONSOLE" in line]}
