"""The page to explore what trees do with texts: paths of tokens, tokens of leaves, two models side by side."""

from typing import Any

from ultrafastbert.pages.page import Html, build_page, element, join, notes


def render_explorer(data: dict[str, Any]) -> bytes:
    """The page.

    Args:
        data: from `inspection.explore.Exploration.to_dict`.
    """
    models = [model["name"] for model in data["models"]]
    title = f"Trees of {models[0]}" if len(models) == 1 else f"Trees of {models[0]} to {models[-1]}"
    tokens = sum(len(text["tokens"]) for text in data["texts"])
    intro = (
        f"{_count(len(data['texts']), 'text')}, {_count(tokens, 'token')}, {_count(len(data['layers']), 'layer')} of"
        f" trees, {_count(len(models), 'model')}. Point at a token, or move to it with Tab and the arrow keys, to see"
        " its path in each layer. Click it, or press Enter, to keep it. Click a leaf to see its tokens."
    )
    parts = [
        element(
            "header", element("h1", title), element("p", intro), notes(data["remarks"], "What is not in this page")
        ),
        element("noscript", element("p", "This page needs JavaScript.")),
        element("div", _render_search(), _render_view(models, data), class_="explorer"),
    ]
    return build_page(title, element("main", *parts), data, "explorer.js")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _render_search() -> Html:
    """The type-ahead over the texts; the script fills the list."""
    field = join(
        element("label", "Find a text", for_="search"),
        element("input", type="search", id="search", autocomplete="off", spellcheck="false", aria_controls="texts"),
    )
    found = element("p", class_="readout", id="found", role="status")
    texts = element("ul", id="texts", class_="texts", aria_label="Texts")
    return element("section", element("div", field, class_="search"), found, texts, aria_label="Texts")


def _render_view(models: list[str], data: dict[str, Any]) -> Html:
    controls = [_select("model", "Model", list(enumerate(models)))]
    if len(models) > 1:
        controls.append(_select("other", "Compare with", [("", "nothing"), *enumerate(models)]))
    layers = [("", "none"), *((layer, f"layer {layer}") for layer in range(len(data["layers"])))]
    controls.append(_select("color", "Color tokens by their leaf in", layers))
    parts = [
        element("div", *controls, class_="controls"),
        element("h2", "Tokens"),
        element("div", id="tokens"),
        element("h2", "Path"),
        element("div", id="paths"),
        element("h2", "Leaf"),
        element("div", id="leaf"),
    ]
    return element("section", *parts, aria_label="Paths of tokens")


def _select(id: str, label: str, options: list[tuple[object, str]]) -> Html:
    choices = [element("option", text, value=value) for value, text in options]
    return element("div", element("label", label, for_=id), element("select", *choices, id=id))
