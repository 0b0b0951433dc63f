"""`ultrafastbert report RUN ...`: a page that shows pretraining runs."""

from dataclasses import dataclass, field
from pathlib import Path

from ultrafastbert.inspection.fills import MASK, fill_over_training
from ultrafastbert.pages.report import render_report
from ultrafastbert.pages.run import read_run
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import write_atomically
from ultrafastbert.utils.validation import POSITIVE, check_fields

TEXTS = [
    "the capital of france is [MASK].",
    "he opened the [MASK] and went out.",
    "she looked at him and [MASK] nothing.",
    "the function returns a [MASK] of strings.",
]


@dataclass
class ReportArguments:
    """Which runs to show, and how."""

    runs: list[str] = field(
        metadata={
            "help": "directories of pretraining runs, finished, running or stopped, each named by the last part of its"
            " path",
            "nargs": "+",
        }
    )
    output: str | None = None
    """File of the page. [null: report.html in the directory of the first run]"""
    texts: list[str] = field(
        default_factory=list,
        metadata={
            "help": "texts with one [MASK] each, which the models that a run still has fill; by default a few"
            " sentences",
            "nargs": "+",
        },
    )
    fills: bool = True
    """Whether to ask these models. Each of them is loaded."""
    max_models: int = 8
    """How many models of a run to ask; of more, evenly spaced ones."""

    def __post_init__(self):
        check_fields(self, POSITIVE, "max_models")


def report(arguments: ReportArguments) -> None:
    """Writes a self-contained HTML page about pretraining runs, from their files.

    Raises:
        UserError: a path is not a pretraining run, two have the same name, a text does not have one mask, or the page
            cannot be written.
    """
    paths, texts = [Path(run) for run in arguments.runs], arguments.texts or TEXTS
    named = {path.resolve().name: path for path in paths}
    if len(named) < len(paths):
        raise UserError(f"runs is {arguments.runs}; the last parts of the paths should be different")
    for text in texts:
        if (masks := text.count(MASK)) != 1:
            raise UserError(f"text {text!r} has {masks} masks; it should have one {MASK} in place of the word to fill")
    output = Path(arguments.output) if arguments.output else paths[0] / "report.html"
    if output.is_dir():
        raise UserError(f"output {output} is a directory; it should be a file, or not exist")
    runs = [read_run(path, name) for name, path in named.items()]
    fills = []
    for path in paths if arguments.fills else []:
        models, remarks = fill_over_training(path, texts, most=arguments.max_models)
        fills.append({"models": models, "remarks": remarks})
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, render_report(runs, fills, texts))
    except OSError as error:
        raise UserError(f"output {output} cannot be written: {error}") from error
    print(*(f"{run.name}: {note}" for run in runs for note in run.notes), f"Written: {output}", sep="\n")
