"""Statistics over the trainings of each layer."""

from collections.abc import Sequence
from statistics import mean, stdev

from ultrafastbert.experiments.candidates import Candidate
from ultrafastbert.experiments.plan import LayerTraining

ACCURACIES = ("memorisation", "generalisation", "validation")
EPOCHS = ("memorisation_epoch", "generalisation_epoch")


def summarize_layers(plan: Sequence[LayerTraining], results: Sequence[dict]) -> dict:
    """The content of an experiment's JSON file.

    Args:
        plan: the trainings of one experiment.
        results: their results, from `processes.run_measurements`.

    Returns:
        `dataset`, and `layers`, in the order of `plan`. Each has `name`, `kind`, `width`, `block`, `depth`,
        `hardening` and the four `sizes`, in neurons; `diverged`: for each training that diverged, when; `seeds` of the
        other trainings, and their statistics for `memorisation`, `generalisation` and `validation` (percent),
        `memorisation_epoch`, `generalisation_epoch` and `leaves_used` (of a tree; the mean over the trees of a
        network): `values`, `best` (the greatest), `mean` and standard `deviation` (0 for one training), or None
        without values.
    """
    layers: dict[Candidate, list[tuple[LayerTraining, dict]]] = {}
    for training, result in zip(plan, results, strict=True):
        layers.setdefault(training.layer, []).append((training, result))
    summaries = [_summarize_layer(layer, pairs) for layer, pairs in layers.items()]
    return {"dataset": results[0]["settings"]["dataset"], "layers": summaries}


def _summarize_layer(layer: Candidate, pairs: list[tuple[LayerTraining, dict]]) -> dict:
    finished = [result for _, result in pairs if "diverged" not in result]
    summary = {"name": layer.name, "kind": layer.kind, "width": layer.width, "block": layer.block}
    summary |= {"depth": layer.depth, "hardening": f"{layer.hardening:g}", "sizes": pairs[0][1]["sizes"]}
    summary |= {"diverged": {result["run"]: result["diverged"] for _, result in pairs if "diverged" in result}}
    summary |= {"seeds": [training.seed for training, result in pairs if "diverged" not in result]}
    summary |= {name: _statistics([100 * result[name] for result in finished]) for name in ACCURACIES}
    summary |= {name: _statistics([result[name] for result in finished]) for name in EPOCHS}
    leaves = [mean(result["leaves_used"]) for result in finished if result["leaves_used"]]
    return summary | {"leaves_used": _statistics(leaves)}


def _statistics(values: list[float]) -> dict | None:
    if not values:
        return None
    deviation = stdev(values) if len(values) > 1 else 0.0
    return {"values": values, "best": max(values), "mean": mean(values), "deviation": deviation}
