"""The model that an export starts from."""

from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging

from ultrafastbert import AUTO_CLASSES
from ultrafastbert.utils.errors import UserError

HEADS = {model.__name__: model for model in AUTO_CLASSES.values()}


def load_model(directory: str | Path) -> PreTrainedModel:
    """Loads the model with the head that it was saved with, in evaluation mode.

    Raises:
        UserError: the directory does not hold a model of this package.
    """
    directory = Path(directory)
    logging.disable_progress_bar()
    if not (directory / "config.json").is_file():
        raise UserError(f"model {directory} has no config.json; it should be the directory of a saved model")
    try:
        config = AutoConfig.from_pretrained(directory)
        name = (config.architectures or ["?"])[0]
        if name not in HEADS:
            raise UserError(f"model {directory} is a {name}; it should be one of {', '.join(HEADS)}")
        if getattr(config, "quantization_config", None) is not None:
            raise UserError(f"model {directory} was saved after optimize_for_inference; it should be the original")
        return HEADS[name].from_pretrained(directory, config=config).eval()
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise UserError(f"model {directory} cannot be loaded: {error}") from error
