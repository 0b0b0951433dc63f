"""`ultrafastbert convert SRC DST`: converts checkpoints of the original code, and back."""

from dataclasses import dataclass, field
from pathlib import Path

from transformers.utils import logging

from ultrafastbert.conversion.original import from_original, to_original
from ultrafastbert.modeling_ultrafastbert import UltraFastBertForSequenceClassification
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.sizes import DenseSize, TreeSize


@dataclass
class ConvertArguments:
    """Options of `ultrafastbert convert`."""

    source: str = field(metadata={"help": "Checkpoint directory to convert."})
    destination: str = field(metadata={"help": "Directory to create; it must not exist, or be empty."})
    to_original: bool = False
    """Convert a model of this package to a checkpoint of the original code, instead of the reverse."""


def convert(arguments: ConvertArguments) -> None:
    """Converts a checkpoint and prints the size of the model and the files that it wrote.

    Raises:
        ConversionError: the checkpoint cannot be converted; the message says why.
        UserError: a directory cannot be read or written.
    """
    logging.disable_progress_bar()
    destination = Path(arguments.destination)
    try:
        model = (to_original if arguments.to_original else from_original)(arguments.source, destination)
    except OSError as error:
        raise UserError(str(error)) from error
    config = model.config
    trees, dense = TreeSize(config.fff_trees, config.fff_depth), DenseSize(config.intermediate_size)
    print(
        f"{type(model).__name__}: {config.num_hidden_layers} layers of width {config.hidden_size}, "
        f"feedforward {trees if config.feedforward == 'fff' else dense}, "
        f"{model.num_parameters():,} parameters, {model.dtype}"
    )
    is_classifier = isinstance(model, UltraFastBertForSequenceClassification)
    if is_classifier and config.classifier_pooling == "mean" and not arguments.to_original:
        print("note: the classifier averages over real tokens only; the original averages over padding too")
    print(f"wrote {destination}: {', '.join(sorted(file.name for file in destination.iterdir()))}")
