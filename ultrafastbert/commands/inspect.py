"""`ultrafastbert inspect MODEL ...`."""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from ultrafastbert.inspection.explore import Exploration, choose_models
from ultrafastbert.inspection.loading import find_models, load_encoder, read_texts
from ultrafastbert.inspection.summary import sizes, summarize_with_statistics, trace
from ultrafastbert.inspection.summary_figures import draw_over_training, draw_summary
from ultrafastbert.inspection.summary_text import render_over_training, render_summary
from ultrafastbert.pages.explorer import render_explorer
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import write_atomically
from ultrafastbert.utils.validation import NOT_EMPTY, POSITIVE, check_fields


@dataclass
class InspectArguments:
    """Which models to inspect, on which texts."""

    models: list[str] = field(
        metadata={
            "help": "directory of a model, its name on the Hub, a checkpoint of pretraining (OUT/checkpoints/step-N),"
            " or the directory of a run (OUT) for all its checkpoints",
            "nargs": "+",
        }
    )
    text: list[str] = field(
        default_factory=list, metadata={"help": "texts to inspect, and to show token by token", "nargs": "+"}
    )
    file: list[str] = field(
        default_factory=list,
        metadata={
            "help": "files of texts to inspect: .txt (a text per line), .jsonl (field `text`) or .parquet (column"
            " `text`), each also with .gz, .xz or .zst",
            "nargs": "+",
        },
    )
    max_texts: int | None = None
    """Read only this many texts of the files. [null: all]"""
    leaves: int = 3
    """How many of the fullest leaves of each layer to show."""
    output_dir: str = "out/inspect"
    """Directory of the picture, trees.png, and of all numbers, trees.json. Older files are replaced."""
    html: str | None = None
    """File of a page to explore the texts with: the path of each token, the tokens of each leaf, two models side by
    side. [null: no page]"""

    def __post_init__(self):
        check_fields(self, POSITIVE, "max_texts", "leaves")
        check_fields(self, NOT_EMPTY, "html")


def inspect(arguments: InspectArguments) -> None:
    """Prints what the trees of an encoder do with texts, and writes it as a picture, as JSON and, with `html`, a page.

    Shows the leaf of each token of a `--text`, the most frequent tokens of the fullest leaves, how evenly leaves are
    used and how hard the decisions are. For several models, such as the checkpoints of a run, it shows how these
    change, and the last model in full.

    Raises:
        UserError: a model or file cannot be read, models have different trees or, with `html`, tokenizers, there is no
            text, or the output directory or the page cannot be written.
    """
    texts = _read_texts(arguments)
    output = Path(arguments.output_dir)
    picture, numbers = output / "trees.png", output / "trees.json"
    _check_writable(output, picture, numbers)
    page = Path(arguments.html) if arguments.html else None
    if page is not None:
        _check_writable(page.parent, page, option="html")
    names = find_models(arguments.models)
    explored, remarks = choose_models(names)
    exploration = Exploration(texts, len(explored), remarks=remarks)
    summaries = []
    for name in names:
        encoder = load_encoder(name)
        summary, statistics = summarize_with_statistics(encoder, texts, arguments.leaves)
        summaries.append(summary)
        if sizes(summaries[-1]) != sizes(summaries[0]):
            raise UserError(
                f"model {name} has other trees than {summaries[0]['model']}; models to compare should have the same"
                " number of layers, and layers the same trees"
            )
        if page is not None and name in explored:
            exploration.add(encoder, summary, statistics)
    traces = [trace(encoder, text) for text in arguments.text]  # of the last model

    written = ", ".join(map(str, (picture, numbers) if page is None else (picture, numbers, page)))
    parts = [render_summary(summaries[-1], traces), f"Written: {written}"]
    try:
        if len(summaries) == 1:
            draw_summary(summaries[0], picture)
        else:
            draw_over_training(summaries, picture)
            parts.insert(0, render_over_training(summaries))
        write_atomically(numbers, json.dumps({"models": summaries, "traces": traces}) + "\n")
        if page is not None:
            write_atomically(page, render_explorer(exploration.to_dict()))
    except OSError as error:
        raise UserError(f"the results cannot be written: {error}") from error
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


def _check_writable(directory: Path, *files: Path, option: str = "output_dir") -> None:
    """Creates the directory of the files, and tests that they can be written, before the work is done."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise UserError(f"{option} {directory} cannot be written: {error}") from error
    for file in files:
        if file.is_dir():
            raise UserError(f"{file} is a directory; it should be a file, or not exist")
