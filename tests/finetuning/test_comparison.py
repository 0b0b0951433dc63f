"""The comparison of two `glue.json`: its numbers, its remarks, and the figure."""

import json
from statistics import mean, median

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from ultrafastbert.finetuning.comparison import compare_results, draw_comparison, read_result, render_comparison
from ultrafastbert.utils.errors import UserError

METRICS = {"CoLA": "matthews_correlation", "MRPC": "f1", "STS-B": "spearman", "reviews": "accuracy"}
A = {"CoLA": [0.1, 0.3, 0.2], "RTE": [0.5, 0.56, 0.52], "MRPC": [0.8, 0.81, 0.7], "WNLI": [0.9, 0.9, 0.9]}
B = {"RTE": [0.6, 0.4], "CoLA": [-0.0001, 0.0], "MRPC": [0.75, 0.75], "WNLI": [0.1, 0.1]}


@pytest.fixture
def write(tmp_path):
    """Writes the `glue.json` of a directory and reads it; its averages are over another task, and must be ignored."""

    def write(directory, values, name=None, metrics=METRICS, rows="same", **settings):
        scores = {title: {"metric": metrics.get(title, "accuracy"), "values": v} for title, v in values.items()}
        scores = {title: score | {"data_fingerprint": rows} for title, score in scores.items()}
        averages = {"average": {"of": ["SST-2"], "median": 0.77, "best": 0.77}}
        content = {"format": 1, "name": name or directory, "model": f"out/{directory}", "settings": settings}
        path = tmp_path / directory / "glue.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content | {"scores": scores, "averages": averages, "tasks": {}}))
        return read_result(path.parent)

    return write


def table(text):
    """The cells of each row, by the first of them."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows[2:]}


def test_the_table_has_medians_spread_and_differences(write):
    rows = table(render_comparison(compare_results(write("a", A), write("b", B))))
    assert rows["CoLA"] == ["matthews_correlation", "3 and 2", "20.0 [10.0, 30.0]", "0.0 [0.0, 0.0]", "+20.0"]
    assert rows["RTE"] == ["accuracy", "3 and 2", "52.0 [50.0, 56.0]", "50.0 [40.0, 60.0]", "+2.0"]
    assert rows["MRPC"] == ["f1", "3 and 2", "80.0 [70.0, 81.0]", "75.0 [75.0, 75.0]", "+5.0"]
    assert list(rows)[:4] == list(A)


def test_averages_are_over_the_tasks_that_both_have_without_wnli(write):
    comparison = compare_results(write("a", A | {"SST-2": [0.9]}), write("b", B | {"QNLI": [0.5]}))
    assert comparison.averages == {"average": ["RTE", "MRPC", "CoLA"], "average without CoLA": ["RTE", "MRPC"]}
    expected = [100 * mean(median(values[title]) for title in ("RTE", "MRPC", "CoLA")) for values in (A, B)]
    assert comparison.average("average") == pytest.approx(expected)
    text = render_comparison(comparison)
    assert table(text)["average without CoLA, of 2"][2:] == ["66.0", "62.5", "+3.5"]
    assert "without WNLI" in text and "Only A has SST-2.\nOnly B has QNLI." in text


@pytest.mark.parametrize("titles", [["CoLA"], ["CoLA", "WNLI"], ["WNLI"], ["reviews", "WNLI"]])
def test_one_task_has_no_average(titles, write):
    scores = dict.fromkeys(titles, [0.5])
    comparison = compare_results(write("a", scores), write("b", scores))
    assert comparison.titles == titles and not comparison.averages
    assert list(table(render_comparison(comparison))) == titles


def test_equal_averages_are_shown_once(write):
    scores = {"RTE": [0.5], "MRPC": [0.7]}
    assert list(compare_results(write("a", scores), write("b", scores)).averages) == ["average"]


def test_tasks_with_different_metrics_are_not_compared(write):
    a, b = write("a", A), write("b", A, metrics=METRICS | {"MRPC": "accuracy"})
    comparison = compare_results(a, b)
    assert comparison.titles == ["CoLA", "RTE", "WNLI"]
    assert "MRPC is not compared: its metric is f1 in A and accuracy in B." in render_comparison(comparison)


def test_settings_and_examples_that_differ_are_named(write):
    a = write("a", A, model="x", random_init=True, epochs=5, lr=4e-5, seeds=3, lr_sweep=None)
    b = write("b", B, model="y", random_init=False, epochs=5, lr=1e-4, seeds=2, dropout=0.1)
    lines = render_comparison(compare_results(a, b)).split("A and B differ not only in the model")[1].splitlines()
    assert lines[2:] == [
        "- lr: 4e-05 in A, 0.0001 in B",
        "- seeds: 3 in A, 2 in B",
        "- lr_sweep: null in A, not given in B",
        "- dropout: not given in A, 0.1 in B",
    ]
    same = write("c", A, **a.settings | {"model": "z", "random_init": False})
    assert "not only in the model" not in render_comparison(compare_results(a, same))
    other_rows = write("d", A, rows="other", **a.settings)
    assert "- the examples of CoLA, RTE, MRPC, WNLI are not the same" in render_comparison(
        compare_results(a, other_rows)
    )


def test_equal_names_are_distinguished_by_their_paths(write):
    a, b, deep = (write(directory, A, name="1x8") for directory in ("a", "b", "deep/a"))
    assert compare_results(a, b).names == ("1x8 (a)", "1x8 (b)")
    assert compare_results(a, deep).names == (f"1x8 ({a.path})", f"1x8 ({deep.path})")
    assert compare_results(a, write("c", A, name="dense")).names == ("1x8", "dense")


def test_bars_in_titles_are_escaped(write):
    rows = table(render_comparison(compare_results(write("a", {"x|y": [0.5]}), write("b", {"x|y": [0.5]}))))
    assert list(rows) == [r"x\|y"] and len(rows[r"x\|y"]) == 5


SCORE = {"metric": "accuracy", "values": [0.5], "data_fingerprint": "x"}
GOOD = {"format": 1, "name": "a", "settings": {}, "scores": {"RTE": SCORE}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("loss 2.3", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        ("[1]", "has format null, not 1"),
        (json.dumps(GOOD | {"format": 2}), "has format 2, not 1"),
        (json.dumps({"format": 1}), "is damaged .*scores"),
        (json.dumps(GOOD | {"scores": {"RTE": [0.5]}}), "is damaged"),
        (json.dumps(GOOD | {"scores": {"RTE": SCORE | {"values": []}}}), r"values of RTE are \[\]"),
        (
            json.dumps(GOOD | {"scores": {"RTE": SCORE | {"values": [float("nan")]}}}),
            r"values of RTE are \[nan",
        ),
    ],
)
def test_other_files_are_errors_that_name_the_file(content, message, tmp_path):
    path = tmp_path / "glue.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"glue.json.*{message}"):
        read_result(path)


def test_results_that_cannot_be_compared_are_errors(write, tmp_path):
    a = write("a", {"RTE": [0.5]})
    with pytest.raises(UserError, match="missing.json cannot be read"):
        read_result(tmp_path / "missing.json")
    with pytest.raises(UserError, match="same file"):
        compare_results(a, read_result(a.path))
    with pytest.raises(UserError, match=r"a.glue.json \(RTE by accuracy\) .*b.glue.json \(no scores\) have no task"):
        compare_results(a, write("b", {}))


def drawn(monkeypatch, comparison, directory):
    """The figure that is written, and the path of its file."""
    figures = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (figures.append(figure), savefig(figure, *a, **k)))
    path = draw_comparison(comparison, directory)
    return figures[0], path


@pytest.mark.parametrize("name", ["_private", "costs $5 or $6", "very long " * 20])
def test_the_figure_has_every_value_name_and_metric(name, write, tmp_path, monkeypatch):
    comparison = compare_results(write("a", A, name=name), write("b", B))
    figure, path = drawn(monkeypatch, comparison, tmp_path / "new" / "directory")
    assert path == tmp_path / "new" / "directory" / "compare_glue.png"
    axes = figure.axes[0]
    points = [tuple(line.get_xdata()) for line in axes.lines]
    for title in A:
        for values in (A[title], B[title]):
            assert tuple(100 * value for value in values) in points
            assert (100 * min(values), 100 * max(values)) in points
            assert (100 * median(values),) in points
    for label in comparison.averages:
        assert {(value,) for value in comparison.average(label)} <= set(points)
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels[:2] == ["CoLA\nMatthews correlation", "RTE\nAccuracy"]
    assert labels[4:] == ["average\nof 3", "average without CoLA\nof 2"]
    legend = [text.get_text().replace("\\", "").replace("\n", " ") for text in figure.legends[0].get_texts()]
    assert legend == [f"A: {name}".strip(), "B: b"]
    figure.draw_without_rendering()  # saving had another resolution
    width = figure.get_window_extent().width
    assert all(text.get_window_extent().x1 <= width for text in (*axes.texts, *figure.legends[0].get_texts()))
    assert imread(path).std() > 0


def test_a_figure_that_cannot_be_written_is_an_error_and_changes_no_files(write):
    a, b = write("a", A), write("b", B)
    before = a.path.read_bytes()
    for directory in (a.path, a.path / "new"):
        with pytest.raises(UserError, match="compare_glue.png cannot be written: (File exists|Not a directory)"):
            draw_comparison(compare_results(a, b), directory)
    assert a.path.read_bytes() == before
