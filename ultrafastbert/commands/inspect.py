"""`ultrafastbert inspect MODEL ...`: what the trees of an encoder do with text.

Shows which leaf each token of a `--text` takes, the tokens that gather at the fullest leaves, how evenly leaves are
used and how hard the decisions are. Of several models, such as the checkpoints of a run, it shows how that changes,
and the last one in full.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from ultrafastbert.inspection import report
from ultrafastbert.inspection.loading import find_models, load_encoder, read_texts
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import write_atomically
from ultrafastbert.utils.validation import POSITIVE, check_fields


@dataclass
class InspectArguments:
    """Which models are inspected, with which texts."""

    models: list[str] = field(
        metadata={
            "help": "directory of a model, its name on the Hub, a checkpoint of pretraining (OUT/checkpoints/step-N),"
            " or the directory of a run (OUT) for all its checkpoints",
            "nargs": "+",
        }
    )
    text: list[str] = field(
        default_factory=list, metadata={"help": "texts whose tokens are shown one by one", "nargs": "+"}
    )
    file: list[str] = field(
        default_factory=list,
        metadata={
            "help": "files of texts that are counted: a text a line (.txt), or the field or column `text` (.jsonl,"
            " .parquet), each also .gz, .xz or .zst",
            "nargs": "+",
        },
    )
    max_texts: int | None = None
    """Read only this many texts of the files. [null: all]"""
    leaves: int = 3
    """The fullest leaves of a layer to show."""
    output_dir: str = "out/inspect"
    """Directory of trees.png, the picture, and trees.json, all figures; older files are replaced."""

    def __post_init__(self):
        check_fields(self, POSITIVE, "max_texts", "leaves")


def inspect(arguments: InspectArguments) -> None:
    """Prints what was found, and writes the picture and the figures.

    Raises:
        UserError: a model or file that cannot be read, models whose trees differ, no text, or an output directory
            that cannot be written.
    """
    output = Path(arguments.output_dir)
    texts = _read_texts(arguments)
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(output / "trees.json", "{}\n")  # before the work, whether results can be written
    except OSError as error:
        raise UserError(f"output_dir {output} cannot be written: {error}") from error
    results = []
    for name in find_models(arguments.models):
        encoder = load_encoder(name)
        results.append(report.inspect(encoder, texts, arguments.leaves))
        _check_same_trees(results)
    traces = [report.trace(encoder, text) for text in arguments.text]  # of the last model

    picture, figures = output / "trees.png", output / "trees.json"
    parts = [report.render(results[-1], traces), f"written: {picture}, {figures}"]
    try:
        if len(results) == 1:
            report.draw(results[0], picture)
        else:
            report.draw_over_training(results, picture)
            parts.insert(0, report.render_over_training(results))
        write_atomically(figures, json.dumps({"models": results, "traces": traces}) + "\n")
    except OSError as error:
        raise UserError(f"a result cannot be written: {error}") from error
    print("\n\n".join(parts), flush=True)


def _read_texts(arguments: InspectArguments) -> list[str]:
    for text in arguments.text:
        if not text.strip():
            raise UserError(f"text is {text!r}; it should contain a word")
    texts = [*arguments.text, *read_texts(arguments.file, arguments.max_texts)]
    if not texts:
        files = f"{', '.join(arguments.file)} has none" if arguments.file else "neither --text nor --file is given"
        raise UserError(f"there is no text to inspect: {files}")
    return texts


def _check_same_trees(results: list[dict]) -> None:
    first, last = results[0], results[-1]
    if report.sizes(first) != report.sizes(last):
        raise UserError(
            f"model {last['model']} has other trees than {first['model']}; models that are compared should have as"
            " many layers, with as many trees of the same depth"
        )
