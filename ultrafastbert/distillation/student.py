"""The student: the teacher's configuration and weights, with feedforward layers of other sizes."""

import copy
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from ultrafastbert.distillation.arguments import FitArguments
from ultrafastbert.distillation.fitting import LayerFit, SideBySide
from ultrafastbert.distillation.texts import Sequences
from ultrafastbert.modeling_ultrafastbert import UltraFastBertModel, UltraFastBertPreTrainedModel
from ultrafastbert.runs.interrupts import Interrupt

ACTIVATIONS = ".activations-"
"""How the names of temporary directories begin."""


def build_student(teacher: UltraFastBertPreTrainedModel, sizes: list[str]) -> UltraFastBertPreTrainedModel:
    """A model with the teacher's weights, except for layers of another size, which are initialised.

    Each layer gets a skip, which is zero beside a layer that stays.

    Args:
        teacher: with dense layers and no skips.
        sizes: of the feedforward layers, one for each layer.
    """
    config = copy.deepcopy(teacher.config)
    config.feedforward_sizes, config.feedforward_skip = sizes, True
    student: Any = type(teacher)(config)
    student = student.to(teacher.device)
    weights = dict(teacher.state_dict())
    for index in replaced_layers(teacher, student):
        weights = {
            name: tensor for name, tensor in weights.items() if f"layers.{index}.feedforward." not in f".{name}"
        }
    found: Any = student.load_state_dict(weights, strict=False)
    new = [name for name in found.missing_keys if ".feedforward." not in name and ".skip." not in name]
    assert not new and not found.unexpected_keys, (new, found.unexpected_keys)
    student.tie_weights()
    return student


def replaced_layers(teacher: UltraFastBertPreTrainedModel, student: UltraFastBertPreTrainedModel) -> list[int]:
    """The layers in which the student's feedforward layer has another size than the teacher's."""
    pairs = zip(teacher.config.sizes_by_layer, student.config.sizes_by_layer, strict=True)
    return [index for index, (before, after) in enumerate(pairs) if before != after]


def fit_student(
    teacher: UltraFastBertPreTrainedModel,
    student: UltraFastBertPreTrainedModel,
    sequences: Sequences,
    arguments: FitArguments,
    output: Path,
    interrupt: Interrupt,
    report: Callable[[int, float], None],
) -> list[float | None] | None:
    """Fits all replaced layers of the student.

    Args:
        teacher: in evaluation mode.
        student: as `build_student` returns it.
        sequences: whose tokens the layers are fitted to.
        arguments: of the fits.
        output: directory for a temporary file.
        interrupt: after a signal it stops.
        report: called with each layer and its unexplained variance.

    Returns:
        The unexplained variance of each layer, None for one that stays; None if a signal arrived.
    """
    encoders = [cast(UltraFastBertModel, model.base_model) for model in (teacher, student)]
    unexplained: list[float | None] = [None] * len(encoders[0].layers)
    replaced = replaced_layers(teacher, student)
    for left_over in output.glob(f"{ACTIVATIONS}*"):  # by a run that was killed
        shutil.rmtree(left_over)
    student.eval()
    with tempfile.TemporaryDirectory(dir=output, prefix=ACTIVATIONS) as scratch:
        both = SideBySide(encoders[0], encoders[1], sequences, arguments.tokens, Path(scratch))
        for index, layer in enumerate(both.layers[1]):
            both.attend(index)
            if index in replaced:
                error = LayerFit(layer, both.inputs, both.targets, arguments).run(interrupt)
                if error is None:
                    return None
                unexplained[index] = error
                report(index, error)
            both.feed_forward(index)
    return unexplained
