"""`ultrafastbert plot RUN ...`: figures of pretraining runs, or the comparison of two results of fine-tuning."""

from dataclasses import dataclass, field
from pathlib import Path

from ultrafastbert.finetuning.comparison import compare_results, draw_comparison, read_result, render_comparison
from ultrafastbert.finetuning.schema import RESULTS
from ultrafastbert.pretraining.curves import plot_runs, tabulate_runs
from ultrafastbert.utils.errors import UserError


@dataclass
class PlotArguments:
    """Options of `ultrafastbert plot`."""

    runs: list[str] = field(
        metadata={
            "help": "directories of pretraining runs, each named in the legend by the last part of its path; or two"
            " results of fine-tuning (glue.json or its directory), the baseline second",
            "nargs": "+",
        }
    )
    output_dir: str = "plots"
    """Directory of the figures: loss.png, accuracy.png, throughput.png and leaves.png, or compare_glue.png."""
    unigram_entropy: float | None = None
    """Entropy of the training tokens, which `pretrain` prints, to draw as a line. [nats; null: no line]"""


def plot(arguments: PlotArguments) -> None:
    """Writes the figures, prints their paths, and prints a table of the validations or of the comparison.

    Raises:
        UserError: a path is neither a pretraining run nor a result of fine-tuning, there are both, or not two results,
            or a file cannot be written.
    """
    runs, output = [Path(run) for run in arguments.runs], Path(arguments.output_dir)
    if any(run.name == RESULTS or (run / RESULTS).exists() for run in runs):
        _compare(runs, output)
        return
    named = {run.name: run for run in runs}
    if len(named) < len(runs):
        raise UserError(f"runs is {arguments.runs}; the last parts of the paths should be different")
    try:
        files, table = plot_runs(named, output, arguments.unigram_entropy), tabulate_runs(named)
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    print(*files, table, sep="\n")


def _compare(runs: list[Path], output: Path) -> None:
    results = [read_result(run) for run in runs]
    if len(results) != 2:
        raise UserError(f"runs has {len(results)} results of fine-tuning; it should have two, the baseline second")
    comparison = compare_results(*results)
    file = draw_comparison(comparison, output)
    print(f"{render_comparison(comparison)}\n\nThe figure is {file}.")
