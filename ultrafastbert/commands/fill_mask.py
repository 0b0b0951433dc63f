"""`ultrafastbert fill-mask MODEL TEXT...`: prints the most probable tokens for the mask of each text."""

from dataclasses import dataclass, field

from transformers import pipeline
from transformers.utils import logging

from ultrafastbert.runs.models import locate_model
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.validation import POSITIVE, check_fields


@dataclass
class FillMaskArguments:
    """Options of `ultrafastbert fill-mask`."""

    model: str = field(metadata={"help": "Directory of a masked language model or of a run, or its name on the Hub."})
    texts: list[str] = field(metadata={"help": "Texts with one [MASK] each.", "nargs": "+"})
    top_k: int = 5
    """Number of predictions to print for each text."""

    def __post_init__(self):
        check_fields(self, POSITIVE, "top_k")


def fill_mask(arguments: FillMaskArguments) -> None:
    """Prints the most probable tokens for the mask of each text.

    Raises:
        UserError: the model cannot be loaded, or a text does not have exactly one mask.
    """
    logging.disable_progress_bar()
    model = locate_model(arguments.model)
    try:
        fill = pipeline("fill-mask", model, top_k=arguments.top_k)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model {arguments.model} cannot be loaded: {error}") from error
    mask = str(getattr(fill.tokenizer, "mask_token", None))
    for text in arguments.texts:
        if text.count(mask) != 1:
            raise UserError(
                f"text {text!r} has {text.count(mask)} masks; it should have one {mask} in place of the word to fill"
            )
    known = fill.model.config.vocab_size
    if arguments.top_k > known:
        raise UserError(f"top_k is {arguments.top_k}; it should be at most {known}, the tokens that the model knows")
    for text in arguments.texts:
        print(text)
        for prediction in fill(text):
            print(f"  {prediction['score']:6.1%}  {prediction['token_str']}")
