"""`ultrafastbert plot RUN ...`: plots of pretraining runs, or the comparison of two results of fine-tuning."""

from dataclasses import dataclass, field
from pathlib import Path

from ultrafastbert.finetuning.comparison import compare, draw_comparison, read_result, render_comparison
from ultrafastbert.pretraining.curves import plot_runs
from ultrafastbert.utils.errors import UserError


@dataclass
class PlotArguments:
    """What is plotted, and where to."""

    runs: list[str] = field(
        metadata={
            "help": "directories of pretraining runs, each named in the legend by its last part; or two results of"
            " fine-tuning (glue.json or its directory), of which the second is the baseline",
            "nargs": "+",
        }
    )
    output_dir: str = "plots"
    """Directory of the pictures: loss.png, throughput.png and leaves.png, or compare_glue.png."""
    unigram_entropy: float | None = None
    """Entropy of the training tokens, as `pretrain` prints it, drawn as a line. [nats; null: no line]"""


def plot(arguments: PlotArguments) -> None:
    """Writes the pictures and prints their paths.

    Raises:
        UserError: a directory that is neither a pretraining run nor a result of fine-tuning, or a mixture of both.
    """
    runs, output = [Path(run) for run in arguments.runs], Path(arguments.output_dir)
    if all(run.name == "glue.json" or (run / "glue.json").exists() for run in runs):
        _compare_results(runs, output)
        return
    named = {run.name: run for run in runs}
    if len(named) < len(runs):
        raise UserError(f"runs is {arguments.runs}; the last parts of the paths should differ")
    try:
        files = plot_runs(named, output, arguments.unigram_entropy)
    except ValueError as error:
        raise UserError(str(error)) from error
    print(*files, sep="\n")


def _compare_results(results: list[Path], output: Path) -> None:
    if len(results) != 2:
        raise UserError(f"runs holds {len(results)} results of fine-tuning; it should hold two, the baseline second")
    comparison = compare(read_result(results[0]), read_result(results[1]))
    output.mkdir(parents=True, exist_ok=True)
    picture = output / "compare_glue.png"
    draw_comparison(comparison, picture)
    print(f"{render_comparison(comparison)}\n\nThe picture is {picture}.")
