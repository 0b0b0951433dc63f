"""Command lines from dataclasses: fields become options, their docstrings become `--help`, YAML files become both."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import Interrupted, UserError


def run_command(
    function: Callable[[Any], Any], arguments_class: type, description: str, defaults: Path | None = None
) -> None:
    """Calls `function` with an `arguments_class` made from the command line; the whole of a script's main.

    Options come from `--config FILE.yaml` and from the command line, such as `--train.lr 1e-3`; later ones win.

    Args:
        function: what the command does; a `UserError` that it raises becomes a message and its exit code.
        arguments_class: a dataclass; nested dataclasses become sections. A ValueError of a `__post_init__` becomes a
            message.
        description: what `--help` shows above the options.
        defaults: a YAML file whose options come before all others.

    Raises:
        SystemExit: code 2 for an option that does not exist, here or in a YAML file, or a wrong value; the code
            of a `UserError`; 130 after Ctrl-C.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # scripts leave it to the system while they import
    try:
        function(parse_arguments(arguments_class, description, defaults))
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


def parse_arguments(
    arguments_class: type, description: str, defaults: Path | None = None, argv: list[str] | None = None
) -> Any:
    """An `arguments_class` made from `argv`, by default the program's own; see `run_command`."""
    try:
        from jsonargparse import auto_cli, set_parsing_settings
    except ImportError:
        raise UserError("the command line needs jsonargparse: pip install 'jsonargparse[signatures]'") from None
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    try:
        return auto_cli(
            arguments_class,
            args=argv,
            as_positional=False,
            return_instance=True,
            allow_abbrev=False,
            description=description,
            default_config_files=[] if defaults is None else [str(defaults)],
            config_help="A YAML file of options; what follows it on the command line overrides it.",
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
    except TypeError as error:  # what becomes of "model:" with nothing below it
        print(f"error: a section of the YAML file is empty or not a table of options: {error}", file=sys.stderr)
    sys.exit(2)
