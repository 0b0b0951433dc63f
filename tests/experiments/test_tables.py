import json
from dataclasses import replace
from statistics import mean, stdev

import pytest

from tests.experiments.toy import toy_arguments
from ultrafastbert.cli import parse_arguments
from ultrafastbert.experiments.arguments import CompareArguments
from ultrafastbert.experiments.compare import EXPERIMENTS, compare_layers
from ultrafastbert.experiments.plan import SIZES, LayerTraining
from ultrafastbert.experiments.summary import summarize_layers
from ultrafastbert.experiments.tables import render
from ultrafastbert.utils.errors import UserError


def plan(experiment, arguments):
    return EXPERIMENTS[experiment].plan(getattr(arguments, experiment))


def invent(trainings, diverged=()):
    """Results in which all values differ; those of the trainings `diverged` have none."""
    results = []
    for number, training in enumerate(trainings):
        result = {"run": training.file, "settings": {"dataset": "digits"}}
        result |= {"sizes": {name: training.layer.width + position for position, name in enumerate(SIZES)}}
        if training in diverged:
            result["diverged"] = "the loss of epoch 7 is nan"
        else:
            result |= {"memorisation": 0.5 + number / 100, "generalisation": 0.4 + number / 100}
            result |= {
                "validation": 0.9 - number / 100,
                "memorisation_epoch": number,
                "generalisation_epoch": 2 * number,
                "leaves_used": [1, 2] if training.layer.kind == "fff" else [],
            }
        results.append(result)
    return results


def table_lines(name, arguments, results):
    experiment = EXPERIMENTS[name]
    content = {"experiment": name, "environment": []} | summarize_layers(plan(name, arguments), results)
    return render(getattr(arguments, name), content, experiment.tables).splitlines()


def cells(lines, start):
    """The rows of all tables with this first cell, without it."""
    return [line.strip("| ").split(" | ")[1:] for line in lines if line.startswith(f"| {start} |")]


def test_a_summary_is_of_the_trainings_of_a_layer(tmp_path):
    trainings = plan("widths", toy_arguments(tmp_path))
    results = invent(trainings, diverged=[trainings[3]])
    layers = {layer["name"]: layer for layer in summarize_layers(trainings, results)["layers"]}
    assert list(layers)[0] == "ff-w8" and len(layers) == 6
    pair = [100 * result["generalisation"] for result in results[4:6]]
    expected = {"values": pair, "best": max(pair), "mean": mean(pair), "deviation": stdev(pair)}
    assert layers["fff-w8-l4-h3"]["generalisation"] == expected
    assert layers["ff-w16"]["seeds"] == [0] and layers["ff-w16"]["generalisation"]["deviation"] == 0
    assert layers["ff-w16"]["diverged"] == {"ff-w16-seed-1.json": "the loss of epoch 7 is nan"}


def test_table_1_shows_the_trainings(tmp_path):
    arguments = toy_arguments(tmp_path)
    lines = table_lines("widths", arguments, invent(plan("widths", arguments)))
    best, spread, epochs, leaves = cells(lines, "tree, leaf size 2")
    # its trainings are the last four: w = 8 with seeds 0 and 1, w = 16 with seeds 0 and 1
    assert best == ["59.0", "49.0", "61.0", "51.0"]
    assert spread == ["58.5 ± 0.7", "48.5 ± 0.7", "60.5 ± 0.7", "50.5 ± 0.7"]
    assert epochs == ["8", "17", "10", "21"]
    assert leaves == ["1.5 of 4", "1.5 of 8"]


def test_divergence_is_counted_in_its_cell_and_named_below(tmp_path):
    arguments = toy_arguments(tmp_path)
    trainings = plan("widths", arguments)
    diverged = [training for training in trainings if training.layer.name == "ff-w8"] + [trainings[3]]
    results = invent(trainings, diverged)
    lines = table_lines("widths", arguments, results)
    best, spread, _ = cells(lines, "feedforward")
    assert best == ["diverged", "diverged", "52.0 (1 diverged)", "42.0 (1 diverged)"]
    assert [line for line in lines if line.startswith("- ")] == [
        f"- {training.file} diverged: the loss of epoch 7 is nan" for training in diverged
    ]
    assert summarize_layers(trainings, results)["layers"][0]["generalisation"] is None


def test_figure_2_is_sorted_by_inference_size(tmp_path):
    arguments = toy_arguments(tmp_path)
    lines = table_lines("inference_size", arguments, invent(plan("inference_size", arguments)))
    sizes = [int(line.split(" | ")[0].strip("| ")) for line in lines if line.startswith("| ") and line[2].isdigit()]
    assert sizes == sorted(sizes) and len(sizes) == 8


def test_table_2_has_the_three_layers_side_by_side(tmp_path):
    arguments = toy_arguments(tmp_path)
    lines = table_lines("experts", arguments, invent(plan("experts", arguments)))
    spread, best = cells(lines, "16")
    assert best == ["51.0", "0", "41.0", "1", "53.0", "2", "43.0", "5", "55.0", "4", "45.0", "9", "1.5 of 2"]
    assert spread[0] == "50.5 ± 0.7" and len(cells(lines, "32")) == 2


def test_table_3_chooses_the_hardening_by_validation(tmp_path):
    arguments = toy_arguments(tmp_path)
    results = invent(plan("vit", arguments))
    lines = table_lines("vit", arguments, results)
    (row,) = cells(lines, "tree, leaf size 4")
    assert row[0] == "2" and row[1] == "16 (100%)" and row[2] == "17 (106%)"
    # trainings: feedforward, leaf 8 with two hardenings, leaf 4 with two; each has a lower validation accuracy
    assert row[5:] == ["43.0", "44.0", "43.0", "1.5 of 4"]
    results[3] = {"run": "third", "sizes": results[3]["sizes"], "diverged": "the loss of epoch 1 is nan"}
    lines = table_lines("vit", arguments, results)
    assert cells(lines, "tree, leaf size 4")[0][5:8] == ["diverged", "44.0", "44.0"]


@pytest.mark.slow
def test_the_whole_comparison(tmp_path, capsys, monkeypatch):
    arguments = toy_arguments(tmp_path / "new" / "out")
    compare_layers(arguments)
    printed, output = capsys.readouterr().out, tmp_path / "new" / "out"
    for name in ("widths", "inference_size", "experts", "vit", "timing"):
        assert (output / f"{name}.md").read_text().rstrip() in printed
        assert json.loads((output / f"{name}.json").read_text())["experiment"] == name
    pictures = {path.name for path in output.glob("*.png")}
    assert pictures == {
        *("widths.png", "inference_size.png", "experts.png", "vit.png", "timing.png"),
        *("widths-entropy.png", "vit-entropy.png"),
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in output.glob("*.png"))
    # the numbers in the tables are those of the results
    runs = [json.loads(path.read_text()) for path in (output / "runs/widths").glob("fff-w16-l2-h3-seed-*.json")]
    lines = (output / "widths.md").read_text().splitlines()
    expected = [f"{100 * max(run[metric] for run in runs):.1f}" for metric in ("memorisation", "generalisation")]
    assert cells(lines, "tree, leaf size 2")[0][2:] == expected
    # repeated, it trains nothing and writes the same tables
    before = {path: path.read_bytes() for path in output.rglob("*.md")}
    monkeypatch.setattr(LayerTraining, "measure", None)
    compare_layers(arguments)
    assert {path: path.read_bytes() for path in output.rglob("*.md")} == before


def test_errors_are_found_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="this PyTorch finds no GPU"):
        compare_layers(toy_arguments(tmp_path / "out", device="cuda"))
    arguments = toy_arguments(tmp_path / "out")
    arguments.vit.patch_size = 3
    with pytest.raises(UserError, match="vit.patch_size is 3; it should divide the images' 8 by 8 pixels"):
        compare_layers(arguments)
    assert not list(tmp_path.rglob("*.json"))


def test_the_command_line_changes_single_options_of_a_section():
    arguments = parse_arguments(
        CompareArguments, ["--experts.training.lr=0.5", "--vit.hardenings=[0.1,.inf]", "--vit.runs=2"]
    )
    assert arguments.experts.training == replace(CompareArguments().experts.training, lr=0.5)
    assert arguments.vit.hardenings == [0.1, float("inf")]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--widths.leaf_sizes=[3]",
            "widths.leaf_sizes is [3]; it should be at least one value, each the training",
        ),
        ("--timing.blocks=[3]", "timing.blocks is [3]"),
        ("--vit.training.epochs=0", "training.epochs is 0; it should be at least 1"),
        ("--workers=0", "workers is 0; it should be at least 1"),
    ],
)
def test_wrong_options_end_the_program_with_a_message(option, message, capsys):
    with pytest.raises(SystemExit) as raised:
        parse_arguments(CompareArguments, [option])
    assert raised.value.code == 2 and message in capsys.readouterr().err
