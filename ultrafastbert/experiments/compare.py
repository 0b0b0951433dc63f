"""Makes the experiments and writes their tables and plots: what scripts/compare_layers.py does."""

from pathlib import Path

import torch

from ultrafastbert.experiments import figures as plots
from ultrafastbert.experiments.arguments import EXPERIMENTS, CompareArguments
from ultrafastbert.experiments.images import load_images
from ultrafastbert.experiments.plan import plan_runs
from ultrafastbert.experiments.speed import check_timing, time_layers
from ultrafastbert.experiments.sweep import make_runs
from ultrafastbert.experiments.tables import summarise, write_report
from ultrafastbert.runs.directory import open_run_directory
from ultrafastbert.utils.errors import UserError


def compare(arguments: CompareArguments) -> None:
    """Makes the runs that are missing, and the tables and plots of all.

    Raises:
        UserError: options, data or a directory that cannot be used; the message says what to mend.
        Interrupted: SIGINT, SIGTERM or SIGHUP; the finished runs are kept.
    """
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda; this PyTorch finds no GPU")
    if arguments.workers < 1:
        raise UserError(f"workers is {arguments.workers}; it should be at least 1")
    names = EXPERIMENTS if arguments.experiment == "all" else (arguments.experiment,)
    plans = {name: plan_runs(name, arguments) for name in names if name != "timing"}
    if "timing" in names:
        check_timing(arguments.timing)
    output = Path(arguments.output_dir)
    with open_run_directory(output):
        images = load_images(arguments.dataset) if plans else None
        _check_patches(plans, images, arguments.vit.patch_size)
        for name, runs in plans.items():
            _make_experiment(name, runs, images, arguments, output)
        if "timing" in names:
            _make_timing(arguments, output)


def _check_patches(plans, images, patch_size) -> None:
    if "vit" in plans:
        _, height, width = images.shape
        if height % patch_size or width % patch_size:
            raise UserError(f"vit.patch_size is {patch_size}; it should divide the images' {height} by {width} pixels")


def _make_experiment(name, runs, images, arguments, output) -> None:
    results = make_runs(runs, images, output, arguments.workers, arguments.device)
    content = {
        "dataset": images.name,
        "environment": _environments(results),
        "layers": summarise(runs, results),
    }
    files = write_report(name, arguments, content)
    files.append(getattr(plots, f"draw_{name}")(content["layers"], output / f"{name}.png"))
    entropies = {"widths": plots.draw_width_entropies, "vit": plots.draw_vit_entropies}
    if name in entropies:
        files.append(entropies[name](runs, results, output / f"{name}-entropy.png"))
    _tell(files)


def _make_timing(arguments, output) -> None:
    cases = time_layers(arguments.timing, output, arguments.device)
    content = {"environment": _environments(cases), "cases": cases}
    files = write_report("timing", arguments, content)
    _tell([*files, plots.draw_timing(cases, output / "timing.png")])


def _environments(results: list[dict]) -> list[dict]:
    """What the results were made on and with, each once."""
    return [dict(pairs) for pairs in dict.fromkeys(tuple(result["environment"].items()) for result in results)]


def _tell(files: list[Path | None]) -> None:
    print(f"\n{files[0].read_text(encoding='utf-8')}")
    print(f"written: {', '.join(str(file) for file in files if file)}")
