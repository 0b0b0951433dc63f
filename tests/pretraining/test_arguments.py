"""Options of pretraining, and the recipes in `configs/`."""

from pathlib import Path

import pytest

from ultrafastbert.cli import parse_arguments
from ultrafastbert.pretraining.arguments import ModelArguments, PretrainArguments, TrainArguments

CONFIGS = Path(__file__).parents[2] / "configs"
PAPER_SIZES = ["3072x0", "1536x1", "512x2", "256x3", "128x4", "64x5", "32x6", "16x7", "8x8", "4x9", "2x10", "1x11"]


def parse(*argv):
    return parse_arguments(PretrainArguments, list(argv))


@pytest.mark.parametrize("size", PAPER_SIZES)
def test_each_size_of_the_paper_is_one_setting(size):
    arguments = parse("--config", str(CONFIGS / "cramming-1x11.yaml"), "--model.fff", size)
    config = arguments.model.build_config(32768, 128)
    assert (config.feedforward, config.fff_trees, config.fff_depth) == ("fff", *map(int, size.split("x")))
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 16, 12)
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0


@pytest.mark.parametrize("neurons", [3072, 4095])
def test_dense_sizes(neurons):
    arguments = parse("--config", str(CONFIGS / "cramming-dense.yaml"), "--model.fff", f"dense-{neurons}")
    config = arguments.model.build_config(32768, 128)
    assert (config.feedforward, config.intermediate_size) == ("dense", neurons)


def test_trees_with_leaves():
    config = parse("--train.max_steps", "1", "--model.fff", "1x7x32").model.build_config(64, 16)
    assert (config.fff_trees, config.fff_depth, config.fff_leaf_size) == (1, 7, 32)


def test_no_feedforward_layers():
    assert parse("--train.max_steps", "1", "--model.fff", "none").model.build_config(64, 16).feedforward == "none"


PRETRAINING = sorted(path for path in CONFIGS.glob("*.yaml") if path.name != "glue.yaml")


@pytest.mark.parametrize("config", PRETRAINING, ids=lambda path: path.name)
def test_every_recipe_is_complete(config):
    assert parse("--config", str(config)).train.budgets


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "no budget is given"),
        (["--train.max_steps", "0"], "train.max_steps is 0; it should be greater than 0"),
        (["--train.max_steps", "5", "--train.mask_probability", "0.6"], "train.mask_probability is 0.6"),
        (["--train.max_steps", "5", "--model.fff", "1y11"], "model.fff is '1y11'"),
        (["--train.max_steps", "five"], "train.max_steps"),
        (["--train.max_step", "5"], "--train.max_step"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--train.max_steps", "5", "--seed", "-1"], "seed is -1"),
        (["--train.max_steps", "5", "--train.lr_peak", "2"], "train.lr_peak is 2.0; it should be from 0 to 1"),
        (["--train.max_steps", "5", "--model.fff", "1x31"], "depth at most 30"),
        (["--train.max_steps", "5", "--output_dir", ""], "output_dir is ''; it should be a non-empty value"),
    ],
)
def test_wrong_options_are_named(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_unknown_key_of_a_file_is_named(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("train:\n  max_steps: 3\n  speed: high\n")
    with pytest.raises(SystemExit):
        parse("--config", str(tmp_path / "config.yaml"))
    assert "speed" in capsys.readouterr().err


def test_an_empty_section_of_a_file_is_an_error(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("model:\ntrain:\n  max_steps: 3\n")
    with pytest.raises(SystemExit) as stop:
        parse("--config", str(tmp_path / "config.yaml"))
    assert stop.value.code == 2 and "section of the YAML file is empty" in capsys.readouterr().err


def test_help_documents_every_option(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    for section, fields in (("train", TrainArguments), ("model", ModelArguments)):
        for name in fields.__dataclass_fields__:
            _, _, after = text.partition(f"  --{section}.{name} ")
            words = after.split("\n  --")[0].split()
            assert len(words) > 6, f"{section}.{name} is not documented"
