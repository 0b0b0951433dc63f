"""`ultrafastbert convert SRC DST`."""

from dataclasses import dataclass, field
from pathlib import Path

from transformers.utils import logging

from ultrafastbert.conversion.original import from_original, to_original
from ultrafastbert.modeling_ultrafastbert import UltraFastBertForSequenceClassification
from ultrafastbert.utils.errors import UserError


@dataclass
class ConvertArguments:
    """What is converted, and where to."""

    source: str = field(metadata={"help": "directory of the checkpoint"})
    destination: str = field(metadata={"help": "directory to create"})
    to_original: bool = False
    """Convert a model of this package for the original code, instead of the other way round."""


def convert(arguments: ConvertArguments) -> None:
    """Converts a checkpoint, and prints what it holds.

    Raises:
        ConversionError: a checkpoint that cannot be converted; the message says why.
        UserError: a directory that cannot be read or written.
    """
    logging.disable_progress_bar()
    source, destination = Path(arguments.source), Path(arguments.destination)
    try:
        model = (to_original if arguments.to_original else from_original)(source, destination)
    except OSError as error:
        raise UserError(str(error)) from error
    config = model.config
    size = f"{config.fff_trees}x{config.fff_depth}" if config.feedforward == "fff" else config.intermediate_size
    print(
        f"{type(model).__name__}: {config.num_hidden_layers} layers of width {config.hidden_size}, "
        f"{config.feedforward} {size}, {model.num_parameters():,} parameters, {model.dtype}"
    )
    classifies = isinstance(model, UltraFastBertForSequenceClassification)
    if not arguments.to_original and classifies and config.classifier_pooling == "mean":
        print("note: a classifier averages the real tokens only; the original averages padding too")
    print(f"written to {destination}: {', '.join(sorted(file.name for file in destination.iterdir()))}")
