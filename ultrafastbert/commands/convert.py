"""`ultrafastbert convert MODEL DST`: converts encoders of the BERT family and checkpoints of the original code."""

from dataclasses import dataclass, field
from pathlib import Path

from transformers.utils import logging

from ultrafastbert.configuration_ultrafastbert import UltraFastBertConfig
from ultrafastbert.conversion.encoder import convert_encoder
from ultrafastbert.conversion.families import FAMILIES
from ultrafastbert.conversion.files import ConversionError, find_model, read_json
from ultrafastbert.conversion.original import from_original, is_original, to_original
from ultrafastbert.modeling_ultrafastbert import UltraFastBertForSequenceClassification, UltraFastBertPreTrainedModel
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import new_directory


@dataclass
class ConvertArguments:
    """Options of `ultrafastbert convert`."""

    source: str = field(
        metadata={
            "help": f"Model to convert: a directory, or a name on the Hub, of type {', '.join(FAMILIES)}, or a "
            "checkpoint of the original code."
        }
    )
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
        model, notes = _convert(arguments.source, destination, arguments.to_original)
    except OSError as error:
        raise UserError(str(error)) from error
    config = model.config
    sizes = ", ".join(dict.fromkeys(map(str, config.sizes_by_layer)))
    print(
        f"{type(model).__name__}: {config.num_hidden_layers} layers of width {config.hidden_size}, "
        f"feedforward {sizes}, {model.num_parameters():,} parameters, {model.dtype}"
    )
    for note in notes:
        print(note)
    files = sorted(f"{file.name}/" if file.is_dir() else file.name for file in destination.iterdir())
    print(f"wrote {destination}: {', '.join(files)}")


def _convert(source: str, destination: Path, back: bool) -> tuple[UltraFastBertPreTrainedModel, list[str]]:
    """The converted model, and what the user should know of it."""
    new_directory(destination)  # before a download
    directory = find_model(source)
    if back:
        return to_original(directory, destination), []
    if is_original(directory):
        model = from_original(directory, destination)
        if isinstance(model, UltraFastBertForSequenceClassification) and model.config.classifier_pooling == "mean":
            return model, [
                "note: the classifier averages over real tokens only; the original averages over padding too"
            ]
        return model, []
    if read_json(directory / "config.json").get("model_type") == UltraFastBertConfig.model_type:
        raise ConversionError(
            f"{source} is a model of this package already; --to_original true converts it for the original code"
        )
    model, difference = convert_encoder(directory, destination)
    return model, [f"its outputs differ from the original's by at most {difference:.1e} (float32, sample texts)"]
