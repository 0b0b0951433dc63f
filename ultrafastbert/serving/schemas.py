"""What the bodies of requests may contain. Fields that do not exist are refused, so that none is ignored silently."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ultrafastbert.serving.engine import MOST_FILLS, Input
from ultrafastbert.serving.errors import shorten


def _check_text(name: str, value: Any, expected: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shorten(value)}; it should be {expected}")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can write half of a character
        raise ValueError(f"{name} is {shorten(value)}; it should be valid Unicode, without surrogates") from None


def _texts(value: Any) -> Any:
    if isinstance(value, list):
        for index, text in enumerate(value):
            _check_text(f"inputs[{index}]", text, "a text")
    else:
        _check_text("inputs", value, "a text or a list of texts")
    return value


def _texts_or_tokens(value: Any) -> Any:
    expected = "a text, a list of texts, a list of token ids or a list of such lists"
    if not isinstance(value, list):
        _check_text("input", value, expected)
    elif value and all(_is_tokens(each) for each in value) or _is_tokens(value):
        pass
    else:
        for index, text in enumerate(value):
            _check_text(f"input[{index}]", text, f"a text; input should be {expected}")
    return value


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _is_batch(value: Any) -> bool:
    """Of `/predict`, whose lists of texts are pairs."""
    return isinstance(value, list) and any(isinstance(each, list) for each in value)


def _pairs(value: Any) -> Any:
    batch = _is_batch(value)
    for index, pair in enumerate(value if batch else [value]):
        name = f"inputs[{index}]" if batch else "inputs"
        texts = pair if isinstance(pair, list) else [pair]
        if (batch and pair is not texts) or len(texts) > 2 or (not texts and batch):
            raise ValueError(
                f"{name} is {shorten(pair)}; it should be a list of one text or of two, which are a pair. A batch is "
                'a list of such lists, as [["first text"], ["second text"]]'
            )
        for text in texts:
            _check_text(name, text, "a text, a pair of texts, or a list of [text] and [text, text]")
    return value


Texts = Annotated[Any, BeforeValidator(_texts)]
"""A text or a list of texts."""
TextsOrTokens = Annotated[Any, BeforeValidator(_texts_or_tokens)]
"""Of OpenAI: a text, a list of texts, a list of token ids, or a list of such lists."""
Pairs = Annotated[Any, BeforeValidator(_pairs)]
"""Of text-embeddings-inference: a text, [text], [text, text], or a list of the last two."""
TopK = Annotated[int | None, Field(ge=1, le=MOST_FILLS)]
"""A number of predictions; null is the default of the route."""
Side = Annotated[Literal["Left", "Right"], BeforeValidator(lambda side: side.title() if type(side) is str else side)]


class Body(BaseModel):
    """A body of a request."""

    model_config = ConfigDict(strict=True, extra="forbid")


class OpenAIRequest(Body):
    """The body of `/v1/embeddings`."""

    input: TextsOrTokens
    model: str | None = None
    """Accepted and ignored: the server has one model."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None
    """Accepted and ignored, as it only tells OpenAI about abuse."""


class EmbedRequest(Body):
    """The body of `/embed`."""

    inputs: Texts
    truncate: bool | None = None
    truncation_direction: Side = "Right"
    normalize: bool | None = True
    prompt_name: str | None = None
    dimensions: int | None = None


class Parameters(Body):
    """Where the client of huggingface_hub puts its options."""

    top_k: TopK = None


class PredictRequest(Body):
    """The body of `/predict`."""

    inputs: Pairs
    truncate: bool | None = None
    truncation_direction: Side = "Right"
    raw_scores: bool = False
    parameters: Parameters = Parameters()

    def listed(self) -> tuple[list[Input], bool]:
        """The texts and pairs, and whether they came as a batch."""
        batch = _is_batch(self.inputs)
        listed = self.inputs if batch else [self.inputs if isinstance(self.inputs, list) else [self.inputs]]
        if listed == [[]]:
            return [], False
        return [each[0] if len(each) == 1 else (each[0], each[1]) for each in listed], batch


class FillMaskRequest(Body):
    """The body of `/fill-mask`."""

    inputs: Texts
    truncate: bool | None = None
    truncation_direction: Side = "Right"
    top_k: TopK = None
    parameters: Parameters = Parameters()

    @model_validator(mode="after")
    def _check_once(self) -> Self:
        if self.top_k is not None and self.parameters.top_k is not None:
            raise ValueError("top_k is given twice; it should be given once, with or without parameters")
        return self

    @property
    def fills(self) -> int:
        """The number of predictions for each mask."""
        return self.top_k or self.parameters.top_k or 5
