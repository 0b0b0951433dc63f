"""`ultrafastbert report`: the page says what the files of runs say, and names what is missing."""

import json
import math
import shutil
from pathlib import Path

import pytest
import yaml

from tests.pages.helpers import HOSTILE, check_page, needs_chromium, visit
from ultrafastbert.cli import main
from ultrafastbert.pages.run import thin
from ultrafastbert.pretraining.trainer import pretrain
from ultrafastbert.runs.reporter import read_metrics
from ultrafastbert.runs.starts import read_starts

VERSION_0_1 = Path(__file__).parents[1] / "fixtures" / "v0.1" / "run"
TEXT = "w1 w2 [MASK] w4"


@pytest.fixture
def command(capsys, tmp_path):
    """Runs the command; returns the page, parsed, and what was printed."""

    def command(*arguments, output=tmp_path / "page.html"):
        main("report", [*map(str, arguments), "--output", str(output)])
        return check_page(output.read_bytes()), capsys.readouterr().out

    return command


@pytest.fixture
def run(small_run, tmp_path):
    """A copy of the small run that may be changed."""
    return Path(shutil.copytree(small_run, tmp_path / "copy"))


def change_lines(run, change):
    lines = [change(line) for line in read_metrics(run / "metrics.jsonl")]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_data_of_the_page_is_that_of_the_metrics(command, small_run):
    page, out = command(small_run, "--texts", TEXT)
    lines = read_metrics(small_run / "metrics.jsonl")
    [shown] = page.data["runs"]
    for group, marker in (("training", "loss"), ("validation", "validation_loss")):
        there = [line for line in lines if marker in line]
        assert there
        for name, values in shown[group].items():
            expected = [line[name] for line in there]
            if name in ("leaves_used", "leaf_entropy"):
                expected = [list(layer) for layer in zip(*expected, strict=True)]
            assert values == expected, name
    assert {"step", "tokens", "seconds", "loss", "lr", "tokens_per_second", "batch_size"} <= set(shown["training"])
    assert {chart["id"] for chart in page.data["charts"]} >= {"loss", "accuracy", "lr", "throughput", "leaf_entropy-0"}
    record = json.loads((small_run / "final" / "pretraining.json").read_text())
    [reference] = page.data["charts"][0]["references"]
    assert reference["value"] == record["unigram_entropy"]
    for expected in (f"{record['loss']:.3f} nats", f"{record['accuracy']:.1%}", "finished", "2x3", "fp32", "12"):
        assert expected in page.texts
    assert f"{lines[-1]['validation_loss']:.4g}" in page.texts  # in the table under the chart
    assert record["data_fingerprint"] in page.texts
    assert out.splitlines()[-1].startswith("Written: ")


def test_the_models_that_are_there_fill_the_texts(command, small_run):
    page, _ = command(small_run, "--texts", TEXT, "w5 [MASK]")
    for model in ("checkpoints/step-4 (step 4)", "checkpoints/step-8 (step 8)", "final (step 12)"):
        assert model in page.texts
    assert "step-12" not in page.text  # the same model as final
    assert TEXT in page.texts and "Only models that a run still has can be asked" in page.text
    page, _ = command(small_run, "--max_models", "1")
    assert "step-8" not in page.text and "1 of 3 models were asked, evenly spaced." in page.texts
    page, _ = command(small_run, "--fills", "false")
    assert "No model was asked (--fills false)." in page.texts


def test_starts_and_resumes_are_recorded(command, make_arguments, tmp_path):
    for steps in (4, 8):
        pretrain(make_arguments(max_steps=steps))
    starts = read_starts(tmp_path / "run" / "starts.jsonl")
    assert [start["step"] for start in starts] == [0, 4]
    assert {"time", "device", "torch", "transformers", "ultrafastbert", "precision"} <= set(starts[0])
    page, _ = command(tmp_path / "run", "--fills", "false")
    assert f"step 0: started at {starts[0]['time']}" in page.texts
    assert f"step 4: resumed at {starts[1]['time']}" in page.texts
    assert page.texts.count(starts[0]["device"]) == 3  # in the results, and with each start
    assert not any("missing" in text for text in page.texts if "starts.jsonl" in text)


def test_a_run_in_progress(command, run):
    shutil.rmtree(run / "final")
    kept = [line for line in read_metrics(run / "metrics.jsonl") if line["step"] <= 8]
    content = "".join(json.dumps(line) + "\n" for line in kept) + '{"step": 10, "lo'
    (run / "metrics.jsonl").write_text(content)
    shutil.rmtree(run / "checkpoints" / "step-12")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    page, _ = command(run, "--texts", TEXT)
    assert "not finished, 67% of the budget spent; it is running or was stopped" in page.text
    assert page.data["runs"][0]["training"]["step"] == [2, 4, 6, 8]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    # the tokenizer is that of the prepared data, and the newest checkpoint is being written
    (run / "checkpoints" / "step-8" / "checkpoint.json").unlink()
    page, _ = command(run, "--texts", TEXT)
    assert "checkpoints/step-4 (step 4)" in page.texts and "checkpoints/step-8 could not be asked" in page.text
    assert "checkpoints/step-8 is incomplete or damaged." in page.texts


def remove(path):
    return shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: remove(run / "metrics.jsonl"), "metrics.jsonl is missing: there is nothing to draw"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "metrics.jsonl has no lines"),
        (lambda run: remove(run / "config.yaml"), "config.yaml is missing: settings, versions and data"),
        (lambda run: (run / "config.yaml").write_text("- 1"), "config.yaml is damaged"),
        (lambda run: (run / "config.yaml").write_bytes(b"model: \xff[\x00"), "config.yaml is damaged"),
        (lambda run: remove(run / "starts.jsonl"), "starts.jsonl is missing: the device"),
        (lambda run: (run / "starts.jsonl").write_text('{"step": "1"}\n3\n'), "starts.jsonl is damaged in line 1, 2"),
        (lambda run: remove(run / "final"), "not finished, 100% of the budget spent"),
        (
            lambda run: (run / "final" / "config.json").write_text("{}"),
            "final/ is damaged, or its files were changed.",
        ),
        (lambda run: remove(run / "checkpoints"), "finished"),
    ],
)
def test_what_is_missing_or_damaged_is_named(command, run, change, message):
    change(run)
    page, _ = command(run, "--fills", "false")
    assert message in page.text


def test_damaged_lines_of_metrics_are_named_and_the_others_shown(command, run):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{\n", '{"step": 3, "loss": "many", "lr": [1], "tokens": true}\n', *lines[1:]]))
    page, out = command(run, "--fills", "false")
    assert "metrics.jsonl is damaged in line 2; these lines are not in this page." in page.texts
    assert "copy: metrics.jsonl is damaged in line 2" in out
    training = page.data["runs"][0]["training"]
    assert (training["step"][:3], training["loss"][1], training["lr"][1]) == ([2, 3, 4], None, None)


def test_skipped_steps_and_losses_that_are_not_finite_are_events(command, run):
    def change(line):
        if "loss" in line:
            line["skipped"] = 3 if line["step"] >= 6 else 0
        if line["step"] == 6 and "loss" in line:
            line["loss"] = None
        if "validation_loss" in line and line["step"] == 12:
            line["validation_loss"] = math.nan
        return line

    change_lines(run, change)
    page, _ = command(run, "--fills", "false")
    assert "steps 5 to 6: 3 skipped, because loss or gradient were not finite" in page.texts
    assert "step 12: the validation loss is nan" in page.texts
    assert page.data["runs"][0]["training"]["loss"][2] is None
    assert page.data["runs"][0]["validation"]["validation_loss"][-1] is None


def test_several_runs(command, small_run, run):
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["train"]["lr"] = 0.125
    settings["new"] = {"option": 7}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    page, _ = command(small_run, run, "--texts", TEXT)
    assert [shown["name"] for shown in page.data["runs"]] == ["run", "copy"]
    [loss] = [chart for chart in page.data["charts"] if chart["id"] == "loss"]
    assert [series["name"] for series in loss["series"]] == [
        *("run: training", "run: validation", "copy: training", "copy: validation")
    ]
    assert {"leaf_entropy-0", "leaf_entropy-1"} <= {chart["id"] for chart in page.data["charts"]}
    place = page.texts.index("train.lr")
    assert page.texts[place : place + 4] == ["train.lr", "0.001", "0.001", "0.125"]
    assert page.texts[(place := page.texts.index("new.option")) : place + 4] == ["new.option", "null", "null", "7"]
    assert "train.micro_batch_size" in page.texts and "train.eps" not in page.texts  # which has its default


def test_a_run_of_version_0_1(command):
    page, _ = command(VERSION_0_1, "--texts", TEXT)
    shown = page.data["runs"][0]
    assert shown["training"]["batch_size"] == [4, 4] and shown["validation"]["leaves_used"] == [[1.0], [1.0]]
    assert "checkpoints/step-4 could not be asked" in page.text


def test_hostile_text_stays_text(command, run, tmp_path):
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"]["source"] = settings["model"]["fff"] = HOSTILE
    settings[HOSTILE] = HOSTILE
    (run / "config.yaml").write_text(f"# torch {HOSTILE.replace(chr(0x2028), '')}\n{yaml.safe_dump(settings)}")
    start = {"step": 0, "time": HOSTILE, "device": HOSTILE, HOSTILE: HOSTILE}
    (run / "starts.jsonl").write_text(json.dumps(start) + "\n")
    change_lines(run, lambda line: line | {HOSTILE: HOSTILE, "lr": HOSTILE})
    named = run.rename(run.with_name(HOSTILE.replace("/", "")))
    page, _ = command(named, "--texts", HOSTILE + "[MASK]")
    assert page.texts.count(HOSTILE) >= 5 and HOSTILE + "[MASK]" in page.texts
    assert page.data["runs"][0]["name"] == named.name
    assert "lr" not in page.data["runs"][0]["training"]


def test_thinning_keeps_the_ends_and_the_extremes():
    lines = [{"step": step, "loss": math.sin(step * step)} for step in range(1000)]
    lines[700]["loss"], lines[701]["loss"] = 99.0, None
    kept = thin(lines, "loss", most=100)
    assert len(kept) <= 100 and kept[0] is lines[0] and kept[-1] is lines[-1] and lines[700] in kept
    assert [line["step"] for line in kept] == sorted(line["step"] for line in kept)
    numbers = [line["loss"] for line in lines if line["loss"] is not None]
    assert min(line["loss"] for line in kept) == min(numbers)
    assert thin(lines, "loss", most=1000) is lines
    assert len(thin([{"step": step} for step in range(50)], "loss", most=10)) <= 10


def test_thinning_is_said(command, run, monkeypatch):
    monkeypatch.setattr("ultrafastbert.pages.run.thin", lambda lines, name: thin(lines, name, most=4))
    page, _ = command(run, "--fills", "false")
    assert "copy: 3 of 6 training lines are in this page" in page.text


def test_the_page_is_written_into_the_run_by_default(run, capsys):
    main("report", [str(run), "--fills", "false"])
    check_page((run / "report.html").read_bytes())
    assert capsys.readouterr().out == f"Written: {run / 'report.html'}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "error: run nowhere does not exist; it should be a directory with metrics.jsonl, config.yaml,"),
        (["."], "error: run . is not a pretraining run; it should be a directory with metrics.jsonl, config.yaml,"),
        (["{run}", "{run}/."], "; the last parts of the paths should be different"),
        (["{run}", "--texts", "w1"], "error: text 'w1' has 0 masks; it should have one [MASK] in place of the word"),
        (["{run}", "--fills", "false", "--output", "."], "error: output . is a directory; it should be a file"),
        (["{run}", "--fills", "false", "--output", "file/page"], "error: output file/page cannot be written: "),
    ],
)
def test_errors_are_messages(arguments, message, small_run, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with pytest.raises(SystemExit) as raised:
        main("report", [argument.format(run=small_run) for argument in arguments])
    assert raised.value.code == 1 and message in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as raised:
        main("report", ["--help"])
    out = capsys.readouterr().out
    assert raised.value.code == 0 and "--output" in out and "--texts" in out and "--max_models" in out


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(360, True), (1200, False)])
def test_in_a_browser(command, small_run, run, tmp_path, width, dark):
    page, _ = command(small_run, run, "--texts", HOSTILE + "[MASK]")
    script = """
      const plot = page.querySelector('[data-chart=loss] .plot');
      plot.focus();
      key(plot, "End"); key(plot, "ArrowLeft"); key(plot, "ArrowLeft");
      const step = plot.getAttribute("aria-valuetext");
      page.querySelector('input[value=tokens]').click();
      key(plot, "Home");
      const tokens = plot.getAttribute("aria-valuetext");
      key(plot, "Escape");
      const { right, top } = plot.getBoundingClientRect(), at = { clientX: right - 20, clientY: top + 50 };
      plot.dispatchEvent(new window.PointerEvent("pointermove", { pointerType: "touch", ...at }));
      const touched = plot.getAttribute("aria-valuetext");
      key(plot, "Escape");
      return { step, tokens, touched, last: plot.getAttribute("aria-valuetext"),
               charts: page.querySelectorAll("svg").length,
               background: window.getComputedStyle(page.body).backgroundColor };
    """
    seen = visit((tmp_path / "page.html").read_bytes(), tmp_path, width, script, dark)
    assert seen["console"] == [] and seen["overflow"] <= 0
    result, training = seen["result"], page.data["runs"][0]["training"]
    assert result["charts"] == len(page.data["charts"])
    assert result["step"].startswith(f"step 8: run: training {training['loss'][3]:.4g}, ".replace("e+00", ""))
    assert result["tokens"].startswith(f"tokens {training['tokens'][0]}: ") and result["last"] == "no value chosen"
    assert result["touched"].startswith(f"tokens {training['tokens'][-1]}: ")
    assert (result["background"] == "rgb(255, 255, 255)") is not dark
