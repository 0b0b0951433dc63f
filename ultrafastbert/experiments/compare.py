"""`ultrafastbert compare`: runs experiments of arXiv 2308.14711 and writes their tables and figures.

Each experiment is an entry in `EXPERIMENTS` and a section of `CompareArguments`.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ultrafastbert.experiments import figures, plan, speed, tables
from ultrafastbert.experiments.arguments import CompareArguments
from ultrafastbert.experiments.images import Images, load_images
from ultrafastbert.experiments.processes import run_measurements
from ultrafastbert.experiments.summary import summarize_layers
from ultrafastbert.runs.directory import open_run_directory
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.figures import save_figure
from ultrafastbert.utils.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Experiment(NamedTuple):
    """An experiment: its measurements, and how they are shown.

    Attributes:
        plan: the measurements, from the section of options.
        tables: Markdown paragraphs, from the section and the content of the JSON file.
        figures: from plan and results, by the suffix of the file's name; a function that returns None draws nothing.
        summarize: entries for the JSON file, from plan and results.
        trains: True if networks are trained on images, several at a time; False for measurements that run alone.
    """

    plan: Callable[[Any], Sequence[Any]]
    tables: Callable[[Any, dict], list[str]]
    figures: dict[str, Callable[[Any, list[dict]], "Figure | None"]]
    summarize: Callable[[Any, list[dict]], dict] = summarize_layers
    trains: bool = True


EXPERIMENTS = {
    "widths": Experiment(
        plan.plan_widths, tables.widths_tables, {"": figures.draw_widths, "-entropy": figures.draw_width_entropies}
    ),
    "inference_size": Experiment(
        plan.plan_inference_size, tables.inference_size_tables, {"": figures.draw_inference_size}
    ),
    "experts": Experiment(plan.plan_experts, tables.experts_tables, {"": figures.draw_experts}),
    "vit": Experiment(
        plan.plan_vit, tables.vit_tables, {"": figures.draw_vit, "-entropy": figures.draw_vit_entropies}
    ),
    "timing": Experiment(
        speed.plan_timing, tables.timing_tables, {"": figures.draw_timing}, lambda _, cases: {"cases": cases}, False
    ),
}


def compare_layers(arguments: CompareArguments) -> None:
    """Runs the measurements that have no result yet, and writes and prints all tables and figures.

    Raises:
        UserError: options, data or a directory that cannot be used; the message says what to change.
        Interrupted: SIGINT, SIGTERM or SIGHUP; finished measurements are kept.
    """
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda; this PyTorch finds no GPU")
    names = list(EXPERIMENTS) if arguments.experiment == "all" else [arguments.experiment]
    with open_run_directory(Path(arguments.output_dir)):
        images = load_images(arguments.dataset) if any(EXPERIMENTS[name].trains for name in names) else None
        if "vit" in names and images is not None:
            size, (_, height, width) = arguments.vit.patch_size, images.shape
            if height % size or width % size:
                raise UserError(f"vit.patch_size is {size}; it should divide the images' {height} by {width} pixels")
        for name in names:
            _compare(name, arguments, images)


def _compare(name: str, arguments: CompareArguments, images: Images | None) -> None:
    experiment, section, output = EXPERIMENTS[name], getattr(arguments, name), Path(arguments.output_dir)
    most = arguments.workers or (1 if arguments.device == "cuda" else os.cpu_count() or 1)
    workers = most if experiment.trains else 1
    measurements = experiment.plan(section)
    results = run_measurements(measurements, images, output / "runs" / name, workers, arguments.device)
    environments = {json.dumps(result["environment"], sort_keys=True): result["environment"] for result in results}
    content = {"experiment": name, "environment": list(environments.values())}
    content |= experiment.summarize(measurements, results)
    table = tables.render(section, content, experiment.tables)
    files = [output / f"{name}.md", output / f"{name}.json"]
    write_atomically(files[0], table)
    write_atomically(files[1], json.dumps(content, indent=1) + "\n")
    for suffix, draw in experiment.figures.items():
        figure = draw(measurements, results)
        if figure is not None:
            files.append(save_figure(figure, output / f"{name}{suffix}.png", dpi=100))
    print(f"\n{table}\nwritten: {', '.join(map(str, files))}")
