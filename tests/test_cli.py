"""The command line itself: help, version, exit codes, options by their earlier names."""

import os
import subprocess
import sys
from dataclasses import dataclass, field, fields

import pytest

import ultrafastbert
from ultrafastbert import cli
from ultrafastbert.cli import COMMANDS, GROUPS, main, parse_arguments
from ultrafastbert.finetuning.arguments import FinetuneArguments
from ultrafastbert.pretraining.arguments import PretrainArguments
from ultrafastbert.utils.errors import Interrupted, UserError


def test_help_shows_every_command_and_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv=["--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0 and "exit codes:" in out
    for name, command in COMMANDS.items():
        assert f"  {name} " in out and command.summary in out


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv=["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out == f"ultrafastbert {ultrafastbert.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "a command is missing; it should be one of pretrain, "),
        (["trian"], "'trian' is not a command"),
        (["benchmark"], "a command is missing; it should be one of layer, "),
        (["benchmark", "speed"], "'speed' is not a command"),
    ],
)
def test_a_wrong_command_is_named(argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv=argv)
    assert caught.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in GROUPS])
def test_every_command_documents_its_options(name, capsys):
    check_help([name], COMMANDS[name], capsys)


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in GROUPS for name in GROUPS[group]])
def test_every_command_of_a_group_documents_its_options(group, name, capsys):
    check_help([group, name], GROUPS[group][name], capsys)


def check_help(argv, command, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv=[*argv, "--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0 and command.summary in " ".join(out.split())
    arguments_class = cli._load(command.arguments)
    for option in fields(arguments_class):
        assert option.name in out
    assert "output_dir" in out or argv[0] in (
        "prepare-data",
        "fill-mask",
        "convert",
        "predict",
        "serve",
        "report",  # its output is a file
    )  # one name for one thing
    assert callable(cli._load(command.function))


@dataclass
class Section:
    """A section."""

    eval_sequences: int = 1
    """An option that had another name."""


@dataclass
class Options:
    """Options of all kinds."""

    name: str = field(metadata={"help": "a positional word"})
    words: list[str] = field(metadata={"help": "more of them", "nargs": "+"})
    text: list[str] = field(default_factory=list, metadata={"help": "an option that may be repeated", "nargs": "+"})
    train: Section = field(default_factory=Section)
    """Section"""


def test_positional_words_and_repeated_options():
    options = parse_arguments(Options, ["a", "b [MASK]", "c", "--text", "d e", "f", "--text", "g"])
    assert options == Options("a", ["b [MASK]", "c"], ["d e", "f", "g"])
    assert parse_arguments(Options, ["a", "b"]).text == []  # not those of the call before


def test_earlier_names_of_options(tmp_path, capsys):
    assert parse_arguments(Options, ["a", "b", "--train.eval_rows", "2"]).train.eval_sequences == 2
    assert parse_arguments(Options, ["a", "b", "--train.eval_rows=3"]).train.eval_sequences == 3
    (tmp_path / "old.yaml").write_text("train:\n  eval_rows: 4\n")
    assert parse_arguments(Options, ["a", "b", f"--config={tmp_path / 'old.yaml'}"]).train.eval_sequences == 4
    (tmp_path / "wrong.yaml").write_text("train:\n  eval_row: 4\n")
    with pytest.raises(SystemExit) as caught:
        parse_arguments(Options, ["a", "b", f"--config={tmp_path / 'wrong.yaml'}"])
    assert caught.value.code == 2 and "eval_row" in capsys.readouterr().err


def test_numbers_as_yaml_does_not_read_them():
    options = parse_arguments(PretrainArguments, ["--train.max_steps=1", "--train.lr=1e-3"])
    assert options.train.lr == 1e-3


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("no such file"), 1, "error: no such file\n"),
        (Interrupted("stopped by signal 15", 15), 143, "stopped by signal 15\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_become_messages_and_exit_codes(error, code, message, monkeypatch, capsys):
    def fail(arguments):
        raise error

    monkeypatch.setattr("ultrafastbert.commands.prepare_data.prepare_data", fail)
    with pytest.raises(SystemExit) as caught:
        main("prepare-data", [])
    assert caught.value.code == code and capsys.readouterr().err == message


def test_the_reader_of_the_output_may_close_it():
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "ultrafastbert", "--help"], stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    os.close(reading)
    assert process.communicate()[1] == b"" and process.returncode == 0


@pytest.mark.parametrize("in_file", [False, True])
def test_a_mistyped_option_is_one_line_with_the_right_one(in_file, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("train:\n  lrr: 0.1\n")
    words = ["--config", str(tmp_path / "config.yaml")] if in_file else ["--train.lrr=0.1"]
    with pytest.raises(SystemExit) as error:
        parse_arguments(PretrainArguments, words, "ultrafastbert pretrain")
    first, second = capsys.readouterr().err.splitlines()
    assert error.value.code == 2 and first.startswith("error: ") and first.endswith("; did you mean --train.lr?")
    assert second == "`ultrafastbert pretrain --help` lists the options."


@pytest.mark.parametrize("words, columns", [("review", ["review"]), ("[review]", ["review"]), ("[a,b]", ["a", "b"])])
def test_a_single_text_column_needs_no_brackets(words, columns):
    argv = ["--model=m", "--own.train=x.csv", f"--own.text_columns={words}"]
    assert parse_arguments(FinetuneArguments, argv).own.text_columns == columns
