"""The page that shows one or several pretraining runs: figures, charts over time, fills, settings, environment."""

from typing import Any

from ultrafastbert.pages.page import Html, build_page, element, join, notes, table
from ultrafastbert.pages.run import (
    BY_LAYER,
    MOST_LINES,
    UNKNOWN,
    Run,
    columns,
    environment,
    events,
    facts,
    number,
    settings_that_differ,
)

ROWS = 24
"""Rows of the table under a chart, for each run."""
CHARTS = {
    "loss": ("Loss", "nats per masked token", "number", False, {"loss": "training", "validation_loss": "validation"}),
    "accuracy": (
        "Accuracy",
        "masked tokens predicted correctly in validation",
        "percent",
        True,
        {"validation_accuracy": ""},
    ),
    "lr": ("Learning rate", "of the last step", "number", True, {"lr": ""}),
    "throughput": (
        "Throughput",
        "tokens/s, without validation and checkpoints",
        "number",
        True,
        {"tokens_per_second": ""},
    ),
    "batch": ("Batch size", "sequences", "number", True, {"batch_size": ""}),
    "gradient": ("Gradient norm", "before clipping", "number", True, {"gradient_norm": ""}),
    "mfu": ("Model FLOPs utilization", "fraction of the GPU's peak", "percent", True, {"mfu": ""}),
}
"""Charts with a line for each run: title, unit, format, whether the axis begins at zero, and the fields' names."""
CUT = ("loss", "gradient")
"""Charts whose first values are much larger than all others, and may be above the top."""
LAYER_CHARTS = {
    "leaves_used": ("Leaves used by layer", "leaves that a validation token reached", "percent"),
    "leaf_entropy": ("Evenness of leaf use by layer", "entropy, 0: one leaf, 1: even", "number"),
}
"""Charts with a line for each layer, one chart for each run."""
FIELDS = {
    "loss": "training loss",
    "validation_loss": "validation loss",
    "validation_accuracy": "accuracy",
    "lr": "learning rate",
    "tokens_per_second": "tokens/s",
    "batch_size": "sequences",
    "gradient_norm": "gradient norm",
    "mfu": "MFU",
}


def render_report(runs: list[Run], fills: list[dict[str, Any]], texts: list[str]) -> bytes:
    """The page.

    Args:
        runs: with different names.
        fills: for each run `models` and `remarks`, as `inspection.fills.fill_over_training` returns them; [] if no
            model was asked.
        texts: that the models filled.
    """
    data = build_data(runs)
    title = f"Pretraining: {', '.join(run.name for run in runs)}"
    charts = [_render_chart(chart, runs) for chart in data["charts"]]
    sections = [
        element("header", element("h1", title), _render_missing(runs, data)),
        _section("Results", _render_facts(runs)),
        _section("Over time", _render_axis(), element("div", *charts, class_="charts")) if charts else Html(""),
        _section("Sample fills", _render_fills(runs, fills, texts)),
        _section("Events", *(_render_events(run, len(runs) > 1) for run in runs)),
        _section("Settings that differ from the defaults", _render_settings(runs)),
        _section("Environment and data", *(_render_environment(run, len(runs) > 1) for run in runs)),
    ]
    return build_page(title, element("main", *sections), data, "charts.js")


def build_data(runs: list[Run]) -> dict[str, Any]:
    """What the charts are drawn from: the metrics of each run, and the charts, each with its series."""
    columned: list[dict[str, Any]] = [{"name": run.name} | columns(run) for run in runs]
    charts = []
    for id, (title, unit, layout, zero, fields) in CHARTS.items():
        series = [
            _series(index, group, field, _name(run["name"] if len(runs) > 1 else "", label) or run["name"])
            for index, run in enumerate(columned)
            for field, label in fields.items()
            for group in ("training", "validation")
            if field in run[group]
        ]
        if series:
            charts.append(_chart(id, title, unit, layout, zero, series, _references(runs) if id == "loss" else []))
    for index, run in enumerate(columned):
        for field, (title, unit, layout) in LAYER_CHARTS.items():
            if layers := run["validation"].get(field):
                of = f", {run['name']}" if len(runs) > 1 else ""
                series = [
                    _series(index, "validation", field, f"layer {layer}", layer) | {"layers": len(layers)}
                    for layer in range(len(layers))
                ]
                charts.append(_chart(f"{field}-{index}", title + of, unit, layout, True, series, []))
    return {"runs": columned, "charts": charts}


def _name(*parts: str) -> str:
    return ": ".join(filter(None, parts))


def _series(run: int, group: str, field: str, name: str, layer: int | None = None) -> dict[str, Any]:
    return {"run": run, "group": group, "field": field, "name": name, "layer": layer}


def _chart(
    id: str, title: str, unit: str, layout: str, zero: bool, series: list[dict], references: list[dict]
) -> dict[str, Any]:
    chart = {"id": id, "title": title, "unit": unit, "format": layout, "zero": zero, "cut": id in CUT}
    return chart | {"series": series, "references": references}


def _references(runs: list[Run]) -> list[dict[str, Any]]:
    """Lines at the loss of a model that has learnt only how often each token occurs."""
    values = {value for run in runs if (value := number((run.record or {}).get("unigram_entropy"))) is not None}
    return [{"value": value, "name": f"unigram entropy of the data, {value:.3f}"} for value in sorted(values)]


def _section(title: str, *content: Html) -> Html:
    return element("section", element("h2", title), *content)


def _render_missing(runs: list[Run], data: dict[str, Any]) -> Html:
    lines = [f"{run.name}: {note}" if len(runs) > 1 else note for run in runs for note in run.notes]
    for run, shown in zip(runs, data["runs"], strict=True):
        drawn, there = len(shown["training"].get("step", [])), len(run.training)
        if drawn < there:
            kept = "the least and the greatest loss of each interval"
            lines.append(
                f"{run.name}: {drawn:,} of {there:,} training lines are in this page: {kept}, at most {MOST_LINES:,}."
            )
    return notes(lines, "What is missing")


def _render_facts(runs: list[Run]) -> Html:
    values = [facts(run) for run in runs]
    if len(runs) == 1:
        cards = [element("div", element("dt", name), element("dd", value)) for name, value in values[0].items()]
        return element("dl", *cards, class_="facts")
    rows = [[name, *(value[name] for value in values)] for name in values[0]]
    return table(["", *(run.name for run in runs)], rows, "Results")


def _render_axis() -> Html:
    """The choice of the horizontal axis, for all charts."""
    choices = {"step": "steps", "seconds": "time", "tokens": "tokens"}
    buttons = [
        element("label", element("input", type="radio", name="axis", value=value, checked=value == "step"), f" {name}")
        for value, name in choices.items()
    ]
    note = element("noscript", element("p", "The charts need JavaScript; the tables below have their numbers."))
    how = element("p", "Point at a chart, touch it, or use the arrow keys on it to read its values.", class_="muted")
    return join(element("fieldset", element("legend", "Horizontal axis"), *buttons, class_="axis"), how, note)


def _render_chart(chart: dict[str, Any], runs: list[Run]) -> Html:
    """The place of a chart, which the script fills, and its numbers as a table."""
    title, tables = chart["title"], []
    for index, run in enumerate(runs):
        series = [one for one in chart["series"] if one["run"] == index]
        for group in ("training", "validation"):
            fields = list(dict.fromkeys(one["field"] for one in series if one["group"] == group))
            if fields:
                tables += _render_numbers(run, group, fields, len(runs) > 1)
    numbers = element("details", element("summary", f"Numbers: {title.lower()}"), *tables)
    heading = element("h3", title, " ", element("small", chart["unit"]))
    return element("figure", heading, element("div", class_="chart", data_chart=chart["id"]), numbers)


def _render_numbers(run: Run, group: str, fields: list[str], named: bool) -> list[Html]:
    """A table of some lines of a run, and a remark on how many."""
    lines = run.training if group == "training" else run.validations
    last = len(lines) - 1
    chosen = sorted({round(last * row / (ROWS - 1)) for row in range(ROWS)}) if last >= ROWS else range(last + 1)
    header = ["step", "hours", "million tokens"]
    for name in fields:
        if name in BY_LAYER:
            layers = max((len(line[name]) for line in lines if isinstance(line.get(name), list)), default=0)
            header += [f"layer {layer}" for layer in range(layers)]
        else:
            header.append(FIELDS[name])
    rows = []
    for line in (lines[index] for index in chosen):
        hours, tokens = number(line.get("seconds")), number(line.get("tokens"))
        row = [f"{line['step']:,}", "" if hours is None else f"{hours / 3600:.3f}"]
        row.append("" if tokens is None else f"{tokens / 1e6:.2f}")
        for name in fields:
            value = line.get(name)
            row += [_cell(one, name) for one in value] if isinstance(value, list) else [_cell(value, name)]
        rows.append((row + [""] * len(header))[: len(header)])
    of = f"{run.name}, {group}" if named else group
    remark = f"{of}: {len(rows):,} of {len(lines):,} lines" if len(rows) < len(lines) else f"{of}: all lines"
    return [element("p", remark), table(header, rows, remark)]


def _cell(value: Any, name: str) -> str:
    value = number(value)
    if value is None:
        return ""
    if name in ("validation_accuracy", "leaves_used", "mfu"):
        return f"{value:.1%}"
    return f"{value:,.0f}" if name in ("tokens_per_second", "batch_size") else f"{value:.4g}"


def _render_fills(runs: list[Run], fills: list[dict[str, Any]], texts: list[str]) -> Html:
    if not fills:
        return element("p", "No model was asked (--fills false).")
    note = "Only models that a run still has can be asked: the checkpoints that were kept (train.keep_checkpoints) and"
    parts = [element("p", f"{note} final/. Earlier ones are gone.")]
    for run, asked in zip(runs, fills, strict=True):
        parts += [element("h3", run.name)] if len(runs) > 1 else []
        parts += [notes(asked["remarks"], "Models that were not asked")]
        if not asked["models"]:
            parts.append(element("p", "This run has no model yet that can be asked."))
            continue
        header = ["text", *(f"{model['model']} (step {model['step']:,})" for model in asked["models"])]
        rows = [
            [text, *(_render_fill(model["fills"][place]) for model in asked["models"])]
            for place, text in enumerate(texts)
        ]
        parts.append(table(header, rows, f"Sample fills of {run.name}"))
    return join(*parts)


def _render_fill(fill: list[list]) -> str:
    return ", ".join(f"{token} {probability:.0%}" for token, probability in fill)


def _render_events(run: Run, named: bool) -> Html:
    found = events(run)
    content = element("ul", *(element("li", event) for event in found)) if found else element("p", "None is recorded.")
    return join(element("h3", run.name) if named else "", content)


def _render_settings(runs: list[Run]) -> Html:
    rows = settings_that_differ(runs)
    if not rows:
        known = any(run.settings is not None for run in runs)
        return element("p", "None." if known else f"The settings are {UNKNOWN}.")
    return table(["setting", "default", *(run.name for run in runs)], rows, "Settings that differ from the defaults")


def _render_environment(run: Run, named: bool) -> Html:
    cards = [element("div", element("dt", name), element("dd", value)) for name, value in environment(run).items()]
    parts = [element("h3", run.name) if named else Html(""), element("dl", *cards, class_="facts long")]
    if run.starts:
        names = ["time", "step", *dict.fromkeys(name for start in run.starts for name in start)]
        names = list(dict.fromkeys(names))
        rows = [[_render_value(start.get(name)) for name in names] for start in run.starts]
        parts += [element("p", "Each time the run was started or resumed:"), table(names, rows, "Starts of the run")]
    return join(*parts)


def _render_value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {one}" for name, one in value.items())
    return "" if value is None else str(value)
