"""Shows what the trees of a pretrained encoder do with text:

    python scripts/inspect_trees.py out/1x11/final --text "the king of france was dead." --file texts.txt

which leaf each token of a --text takes, the tokens that gather at the fullest leaves, how evenly leaves are used and
how hard the decisions are. Of several models, such as the checkpoints of a run, it shows how that changes, and the
last one in full.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it, imports included, without a traceback

from ultrafastbert.errors import UserError  # noqa: E402
from ultrafastbert.files import write_atomically  # noqa: E402
from ultrafastbert.inspection import report  # noqa: E402
from ultrafastbert.inspection.sources import find_models, load_encoder, read_texts  # noqa: E402


def main() -> None:
    arguments = _parse()
    try:
        _inspect(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="directory of a model, its name on the Hub, a checkpoint of pretraining (OUT/checkpoints/step-N), or the"
        " directory of a run (OUT) for all its checkpoints",
    )
    parser.add_argument(
        "--text",
        nargs="+",
        action="extend",
        default=[],
        metavar="TEXT",
        help="texts whose tokens are shown one by one",
    )
    parser.add_argument(
        "--file",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="files of texts that are counted: a text a line (.txt), or the field or column `text` (.jsonl, .parquet),"
        " each also .gz, .xz or .zst",
    )
    parser.add_argument("--max_texts", type=_count, metavar="N", help="only the first N texts of the files")
    parser.add_argument(
        "--leaves", type=_count, default=3, metavar="N", help="the fullest leaves of a layer to show (default: 3)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("inspect_trees.png"),
        metavar="FILE.png",
        help="the picture, which replaces an older one (default: inspect_trees.png)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE.json", help="all figures go here too")
    return parser.parse_args()


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"is {text!r}; it should be a whole number, at least 1")
    return int(text)


def _inspect(arguments: argparse.Namespace) -> None:
    _check_output("output", arguments.output, ".png")
    if arguments.json:
        _check_output("json", arguments.json, ".json")
    texts = _texts(arguments)
    results = []
    for name in find_models(arguments.models):
        encoder = load_encoder(name)
        results.append(report.inspect(encoder, texts, arguments.leaves))
        _check_shape(results)
    traces = [report.trace(encoder, text) for text in arguments.text]  # of the last model

    parts = [report.render(results[-1], traces), f"The picture is {arguments.output}."]
    try:
        if len(results) == 1:
            report.draw(results[0], arguments.output)
        else:
            report.draw_over_training(results, arguments.output)
            parts.insert(0, report.render_over_training(results))
        if arguments.json:
            write_atomically(arguments.json, json.dumps({"models": results, "traces": traces}) + "\n")
            parts.append(f"All figures are in {arguments.json}.")
    except OSError as error:
        raise UserError(f"a result cannot be written: {error}") from error
    _print("\n\n".join(parts))


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_output(name: str, path: Path, suffix: str) -> None:
    """Finds out before the work is done whether its result can be written, and makes the directory for it."""
    if path.suffix.lower() != suffix or path.is_dir():
        raise UserError(f"{name} is {path}; it should be a file whose name ends in {suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{name} {path} cannot be written: {error.strerror}") from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{name} {path} cannot be written: its directory is not writable")


def _texts(arguments: argparse.Namespace) -> list[str]:
    for text in arguments.text:
        if not text.strip():
            raise UserError(f"text is {text!r}; it should have a word in it")
    texts = [*arguments.text, *read_texts(arguments.file, arguments.max_texts)]
    if not texts:
        files = f"{', '.join(arguments.file)} has none" if arguments.file else "neither --text nor --file is given"
        raise UserError(f"there is no text to look at: {files}")
    return texts


def _check_shape(results: list[dict]) -> None:
    first, last = results[0], results[-1]
    if report.sizes(first) != report.sizes(last):
        raise UserError(
            f"model {last['model']} has other trees than {first['model']}; models that are shown against each other"
            " should have as many layers, with as many trees of the same depth"
        )


if __name__ == "__main__":
    main()
