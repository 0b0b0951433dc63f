"""The command line: `ultrafastbert COMMAND`, which `python -m ultrafastbert COMMAND` is too.

A command is a function of one dataclass. The fields of the dataclass become options and their docstrings the
`--help`; a YAML file given by `--config` has the same names. Only the command that is asked for is imported.
"""

import difflib
import functools
import importlib
import os
import re
import signal
import sys
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, NamedTuple, NoReturn

import ultrafastbert
from ultrafastbert.utils.errors import Interrupted, UserError
from ultrafastbert.utils.settings import current_name, rename


class Command(NamedTuple):
    """A command of the program.

    Attributes:
        summary: one line for `--help`.
        function: `module:name`, called with the options; below `ultrafastbert.`.
        arguments: `module:name` of the dataclass of options.
    """

    summary: str
    function: str
    arguments: str


COMMANDS = {
    "pretrain": Command(
        "Pretrain an encoder by masked-language modelling, from text to a model.",
        "pretraining.trainer:pretrain",
        "pretraining.arguments:PretrainArguments",
    ),
    "finetune": Command(
        "Fine-tune and evaluate a model on GLUE or on your own data.",
        "finetuning.sweep:finetune_all",
        "finetuning.arguments:FinetuneArguments",
    ),
    "predict": Command(
        "Predict new texts with a fine-tuned model, or evaluate it.",
        "finetuning.prediction:predict",
        "finetuning.prediction:PredictArguments",
    ),
    "prepare-data": Command(
        "Prepare text for pretraining: train a tokenizer and pack token sequences.",
        "commands.prepare_data:prepare_data",
        "pretraining.data.arguments:DataArguments",
    ),
    "fill-mask": Command(
        "Fill the mask in sentences.", "commands.fill_mask:fill_mask", "commands.fill_mask:FillMaskArguments"
    ),
    "inspect": Command(
        "Show what the trees of an encoder do with text.",
        "commands.inspect:inspect",
        "commands.inspect:InspectArguments",
    ),
    "convert": Command(
        "Convert an encoder of the BERT family, or a checkpoint of the original code, or one back.",
        "commands.convert:convert",
        "commands.convert:ConvertArguments",
    ),
    "distill": Command(
        "Replace the feedforward layers of a trained encoder by trees.",
        "distillation.trainer:distill",
        "distillation.arguments:DistillArguments",
    ),
    "serve": Command(
        "Serve embeddings, classes or masks over HTTP.",
        "serving.server:serve",
        "serving.arguments:ServeArguments",
    ),
    "compare": Command(
        "Compare trees with ordinary layers and mixtures of experts, as arXiv 2308.14711 does.",
        "experiments.compare:compare_layers",
        "experiments.arguments:CompareArguments",
    ),
    "plot": Command(
        "Plot several pretraining runs, or compare two results of fine-tuning.",
        "commands.plot:plot",
        "commands.plot:PlotArguments",
    ),
    "report": Command(
        "Write a page that shows pretraining runs: charts, sample fills, settings.",
        "commands.report:report",
        "commands.report:ReportArguments",
    ),
    "export": Command(
        "Export a model: export hub | onnx | aoti.",
        "",
        "",
    ),
    "benchmark": Command(
        "Measure speed on this machine: benchmark layer | encoder | callers | training | generation | soft.",
        "",
        "",
    ),
}

BENCHMARKS = {
    "layer": Command(
        "Time the layer of trees against ordinary feedforward layers.",
        "benchmarks.layer:benchmark",
        "benchmarks.layer:LayerArguments",
    ),
    "encoder": Command(
        "Time a whole encoder against BERT in PyTorch, ONNX Runtime and OpenVINO.",
        "benchmarks.encoder:benchmark",
        "benchmarks.encoder:EncoderArguments",
    ),
    "callers": Command(
        "Time encoders that several threads of a program call at the same time.",
        "benchmarks.callers:benchmark",
        "benchmarks.callers:CallersArguments",
    ),
    "training": Command(
        "Time whole training steps of encoders with trees and with ordinary layers.",
        "benchmarks.training:benchmark",
        "benchmarks.training:TrainingArguments",
    ),
    "generation": Command(
        "Time a decoder with trees, token by token, against its own feedforward layers.",
        "benchmarks.generation:benchmark",
        "benchmarks.generation:GenerationArguments",
    ),
    "soft": Command(
        "Time SoftFFF against the layer of pip's fastfeedforward.",
        "benchmarks.soft:benchmark",
        "benchmarks.soft:SoftArguments",
    ),
}

EXPORTS = {
    "hub": Command(
        "Write a directory for the Hub, whose model loads without this package.",
        "export.hub:export_hub",
        "export.hub:HubArguments",
    ),
    "onnx": Command(
        "Write a model as a graph of standard operators, and check it in ONNX Runtime.",
        "export.onnx:export_onnx",
        "export.onnx:OnnxArguments",
    ),
    "aoti": Command(
        "Compile a model ahead of time, for processors like this one.",
        "export.aoti:export_aoti",
        "export.aoti:AotiArguments",
    ),
}

GROUPS = {"benchmark": BENCHMARKS, "export": EXPORTS}
"""Commands that are followed by the name of another."""

EXIT_CODES = """exit codes:
  0    success
  1    an error that the message explains: data, a checkpoint, a directory
  2    a wrong option, here or in a YAML file
  128+N  stopped by signal N, with all progress saved: 130 after Ctrl-C, 143 after SIGTERM"""


def main(command: str | None = None, argv: list[str] | None = None) -> None:
    """Runs a command.

    Args:
        command: a key of `COMMANDS`; None takes the first word of the command line.
        argv: the words after the command, by default those that the program was started with.

    Raises:
        SystemExit: with the codes of `EXIT_CODES`; returns normally on success.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        if command is None:
            command, argv = _choose(argv, COMMANDS, "ultrafastbert")
        if command in GROUPS:
            name, argv = _choose(argv, GROUPS[command], f"ultrafastbert {command}")
            run_command(GROUPS[command][name], argv, f"ultrafastbert {command} {name}")
        else:
            run_command(COMMANDS[command], argv, f"ultrafastbert {command}")
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _choose(argv: list[str], commands: dict[str, Command], program: str) -> tuple[str, list[str]]:
    """Splits the first word, a name in `commands`, from the others; answers --help and --version itself."""
    width = max(map(len, commands))
    usage = [f"usage: {program} COMMAND [OPTIONS]", "", "commands:"]
    usage += [f"  {name:{width}}  {command.summary}" for name, command in commands.items()]
    usage += ["", f"`{program} COMMAND --help` lists the options of a command.", "", EXIT_CODES]
    if argv and argv[0] in commands:
        return argv[0], argv[1:]
    if argv and argv[0] == "--version":
        print(f"ultrafastbert {ultrafastbert.__version__}")
        sys.exit(0)
    if argv and argv[0] in ("-h", "--help"):
        print("\n".join(usage), flush=True)
        sys.exit(0)
    found = f"{argv[0]!r} is not a command" if argv else "a command is missing"
    print("\n".join([*usage, "", f"error: {found}; it should be one of {', '.join(commands)}"]), file=sys.stderr)
    sys.exit(2)


def run_command(command: Command, argv: list[str], program: str) -> None:
    """Parses the options of a command and calls its function; errors become messages and exit codes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # train_mlm.py ignores it while the package is imported
    try:
        arguments_class, function = _load(command.arguments), _load(command.function)
        function(parse_arguments(arguments_class, argv, program, command.summary))
    except Interrupted as error:
        if os.environ.get("RANK", "0") == "0":  # several processes are interrupted together
            print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(f"ultrafastbert.{module}"), attribute)


def parse_arguments(arguments_class: type, argv: list[str], program: str = "", summary: str = "") -> Any:
    """An instance of `arguments_class`, a dataclass, from the words of a command line.

    Options come from `--config FILE.yaml` and from the command line, such as `--train.lr 1e-3`; later ones override
    earlier ones. Fields that are dataclasses become sections. A field whose metadata has `help` is a positional
    argument if it has no default, and an option that may be repeated otherwise; it takes as many words as the `nargs`
    in its metadata says.

    Args:
        arguments_class: a ValueError of its `__post_init__` becomes a message.
        argv: the words.
        program: its name in messages.
        summary: shown by `--help`.

    Raises:
        SystemExit: code 2 for an option that does not exist, here or in a YAML file, or a wrong value.
        UserError: jsonargparse is not installed.
    """
    try:
        from jsonargparse import ArgumentParser
    except ImportError:
        raise UserError("the command line needs jsonargparse: pip install 'jsonargparse[signatures]'") from None
    _set_up_jsonargparse()

    class Parser(ArgumentParser):
        """Prints an error in one line, with the option that was probably meant, instead of the whole usage."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            print(f"error: {message}{_did_you_mean(message, list(self._option_string_actions))}", file=sys.stderr)
            print(f"`{self.prog} --help` lists the options.", file=sys.stderr)
            sys.exit(2)

    parser = Parser(prog=program or None, description=summary, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="A YAML file of options; later options override it.")
    by_hand = [field for field in fields(arguments_class) if "help" in field.metadata]
    for field in by_hand:
        name, options = field.name, {"help": field.metadata["help"], "type": str}
        if "nargs" in field.metadata:
            options["nargs"] = field.metadata["nargs"]
        if field.default_factory is not MISSING:  # such an option may be repeated
            name, options = f"--{name}", options | {"action": "extend", "default": field.default_factory()}
        parser.add_argument(name, **options)
    parser.add_class_arguments(arguments_class, None, skip={field.name for field in by_hand}, as_group=False)
    try:
        words = [_with_current_name(word) for word in argv]
        namespace = parser.instantiate(parser.parse_args(words))
        arguments = arguments_class(**{field.name: namespace[field.name] for field in fields(arguments_class)})
        _mark_given(arguments, {word[2:].partition("=")[0] for word in words if word.startswith("--")})
        return arguments
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
    except TypeError as error:  # raised for "model:" with nothing below it
        print(f"error: a section of the YAML file is empty or not a table of options: {error}", file=sys.stderr)
    sys.exit(2)


def _did_you_mean(message: str, options: list[str]) -> str:
    """The option that is closest to the one that a message says does not exist, as "; did you mean ...?"."""
    typed = re.search(r"unrecognized arguments: --([\w.-]+)", message)
    in_file = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
    wrong = typed[1] if typed else ".".join(in_file.groups()) if in_file else ""
    close = difflib.get_close_matches(f"--{wrong}", options, n=1) if wrong else []
    return f"; did you mean {close[0]}?" if close else ""


def _mark_given(arguments: Any, names: set[str]) -> None:
    """Tells each section with an attribute `given` which of its options the command line names."""
    if hasattr(arguments, "given"):
        arguments.given = frozenset(names)
    for field in fields(arguments):
        if is_dataclass(section := getattr(arguments, field.name)):
            prefix = f"{field.name}."
            _mark_given(section, {name.removeprefix(prefix) for name in names if name.startswith(prefix)})


@functools.cache
def _set_up_jsonargparse() -> None:
    """Docstrings of fields become help; YAML files may have options under an earlier name."""
    import yaml
    from jsonargparse import get_loader, set_loader, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    load = get_loader("yaml")
    set_loader("yaml", lambda text: rename(load(text)), exceptions=(yaml.YAMLError,))


def _with_current_name(word: str) -> str:
    """`--train.eval_rows=8` -> `--train.eval_sequences=8`: options under an earlier name are accepted."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{current_name(name)}{equals}{value}"
