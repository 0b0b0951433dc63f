"""The model that is served: what it makes of texts, and how it is loaded.

An engine tokenizes texts and computes batches of them. There is one class for each task: `Embedder`, `Classifier` and
`MaskFiller`. Texts are padded on the right by the engine itself; an optimised model removes this padding before its
layers, and its outputs for a text do not depend on what else is in the batch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file  # pyright: ignore[reportPrivateImportUsage]

from ultrafastbert import (
    UltraFastBertConfig,
    UltraFastBertForMaskedLM,
    UltraFastBertForSequenceClassification,
    UltraFastBertModel,
    UltraFastBertPreTrainedModel,
    optimize_for_inference,
)
from ultrafastbert.inference.operators import UnpaddedLayers
from ultrafastbert.runs.models import locate_model
from ultrafastbert.serving.arguments import ServeArguments
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.transformers import quiet_transformers

Task = Literal["embed", "predict", "fill-mask"]
MODULES = "modules.json"
"""A directory with this file is a model of sentence-transformers."""
MOST_FILLS = 100
"""Predictions that are kept for each mask."""

Input = str | tuple[str, str]
"""A text, or a pair of texts for models that classify pairs."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of a text or pair.

    Attributes:
        input_ids: at least one.
        token_type_ids: as many, or None for a model without token types.
    """

    input_ids: list[int]
    token_type_ids: list[int] | None = None

    @property
    def length(self) -> int:
        """The number of tokens."""
        return len(self.input_ids)


class Fill(NamedTuple):
    """A prediction for a mask: its probability and the id of the token."""

    score: float
    token: int


class Engine(ABC):
    """A model on the CPU and its tokenizer.

    `encode` and what else uses the tokenizer is called in one thread at a time, because tokenizers hold the settings
    of a call as state; `run` in another.

    Args:
        model: of this package, or a `SentenceTransformer` with one inside; in evaluation mode.
        encoder: the model of this package itself.
        tokenizer: of the model.
        max_length: the longest text, in tokens.
    """

    task: ClassVar[Task]

    def __init__(
        self,
        model: nn.Module,
        encoder: UltraFastBertPreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ):
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length
        self.config = cast(UltraFastBertConfig, encoder.config)
        self.dtype = encoder.dtype
        self.prompts: dict[str, str] = {}
        self.default_prompt = ""
        run_layers = cast(UltraFastBertModel, encoder.base_model).run_layers
        self.drops_padding = isinstance(run_layers, UnpaddedLayers)

    @property
    def vocab_size(self) -> int:
        """Ids of tokens are less than that."""
        return self.config.vocab_size

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The kind of model, in the form of the field `model_type` of `/info`."""

    def encode(self, texts: Sequence[Input], truncate: bool = False, side: str = "right") -> list[Encoded]:
        """Tokenizes texts or pairs, with special tokens.

        Args:
            texts: any number.
            truncate: to `max_length`; otherwise texts may come out longer.
            side: `"right"` or `"left"`, where tokens are removed.
        """
        with_types = self.config.type_vocab_size > 0 and "token_type_ids" in self.tokenizer.model_input_names
        self.tokenizer.truncation_side = side
        options: dict[str, Any] = {"truncation": True, "max_length": self.max_length} if truncate else {}
        found = self.tokenizer(
            list(texts),  # pyright: ignore[reportArgumentType]
            return_attention_mask=False,
            return_token_type_ids=with_types,
            verbose=False,  # that a text is too long is answered to the client
            **options,
        )
        ids = cast(list[list[int]], found["input_ids"])
        types = cast(list[list[int]], found["token_type_ids"]) if with_types else [None] * len(ids)
        return [Encoded(*each) for each in zip(ids, types, strict=True)]

    def is_finite(self, result: Any) -> bool:
        """Whether all numbers of a result are finite; others cannot be written as JSON."""
        return bool(result.isfinite().all())

    @torch.inference_mode()
    def run(self, batch: Sequence[Encoded]) -> list[Any]:
        """The result of each text; see the classes."""
        return self._run(self._collate(batch))

    @abstractmethod
    def _run(self, inputs: dict[str, Tensor]) -> list[Any]:
        """`input_ids`, `attention_mask` and perhaps `token_type_ids`, `(batch, seq)` int64 -> a result for each."""

    def _collate(self, batch: Sequence[Encoded]) -> dict[str, Tensor]:
        size = len(batch), max(text.length for text in batch)
        pad = self.tokenizer.pad_token_id or 0
        inputs = {"input_ids": torch.full(size, cast(int, pad)), "attention_mask": torch.zeros(size, dtype=torch.long)}
        if batch[0].token_type_ids is not None:
            inputs["token_type_ids"] = torch.zeros(size, dtype=torch.long)
        for row, text in enumerate(batch):
            inputs["input_ids"][row, : text.length] = torch.tensor(text.input_ids)
            inputs["attention_mask"][row, : text.length] = 1
            if text.token_type_ids is not None:
                inputs["token_type_ids"][row, : text.length] = torch.tensor(text.token_type_ids)
        return inputs


class Embedder(Engine):
    """One vector for each text; a result is a tensor `(dimensions,)`, float32."""

    task = "embed"

    def __init__(self, *arguments: Any, pool: Callable[[dict[str, Tensor]], Tensor], pooling: str, dimensions: int):
        super().__init__(*arguments)
        self._pool, self.pooling, self.dimensions = pool, pooling, dimensions

    def describe(self) -> dict[str, Any]:
        """How vectors are made."""
        return {"embedding": {"pooling": self.pooling}}

    def _run(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        return list(self._pool(inputs).float())


class Classifier(Engine):
    """Classes or numbers for texts or pairs; a result is a tensor of logits `(num_labels,)`, float32."""

    task = "predict"

    @property
    def labels(self) -> list[str]:
        """The names of the classes."""
        names: Any = self.config.id2label
        return [str(names[index]) for index in range(self.config.num_labels)]  # pyright: ignore[reportArgumentType]

    def describe(self) -> dict[str, Any]:
        """The classes."""
        names = dict(enumerate(self.labels))
        return {"classifier": {"id2label": names, "label2id": {name: index for index, name in names.items()}}}

    def score(self, logits: Tensor) -> Tensor:
        """`(num_labels,)` logits -> scores, as the pipeline of transformers makes them.

        Probabilities that sum to 1; of independent classes, and of a single one, each from 0 to 1; and in regression
        the outputs themselves.
        """
        if self.config.problem_type == "regression":
            return logits
        if self.config.problem_type == "multi_label_classification" or len(logits) == 1:
            return logits.sigmoid()
        return logits.softmax(dim=-1)

    def _run(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        return list(self.model(**inputs).logits.float())


class MaskFiller(Engine):
    """Tokens for the masks of texts; a result has a list of `MOST_FILLS` predictions for each mask, the best first."""

    task = "fill-mask"

    def describe(self) -> dict[str, Any]:
        """The mask."""
        return {"fill-mask": {"mask_token": str(self.tokenizer.mask_token)}}

    def count_masks(self, text: Encoded) -> int:
        """The number of masks in a text."""
        return text.input_ids.count(cast(int, self.tokenizer.mask_token_id))

    def is_finite(self, result: list[list[Fill]]) -> bool:
        """Whether all probabilities are finite."""
        return all(math.isfinite(fill.score) for fills in result for fill in fills)

    def write(self, text: Encoded, masks: list[list[Fill]], top_k: int) -> list[list[dict[str, Any]]]:
        """Predictions in the form of the pipeline of transformers: for each mask a list of `top_k`."""
        places = [place for place, token in enumerate(text.input_ids) if token == self.tokenizer.mask_token_id]
        answers = []
        for place, fills in zip(places, masks, strict=True):
            answers.append([])
            for score, token in fills[:top_k]:
                filled = [*text.input_ids[:place], token, *text.input_ids[place + 1 :]]
                answer = {"score": score, "token": token, "token_str": self.tokenizer.decode([token])}
                # with several masks the others should show, and they are special tokens
                answer["sequence"] = self.tokenizer.decode(filled, skip_special_tokens=len(places) == 1)
                answers[-1].append(answer)
        return answers

    def _run(self, inputs: dict[str, Tensor]) -> list[list[list[Fill]]]:
        masked = inputs["input_ids"].eq(cast(int, self.tokenizer.mask_token_id))  # (batch, seq)
        counts = masked.sum(dim=1)
        order = masked.int().argsort(dim=1, descending=True, stable=True)  # positions of masks come first
        logits = self.model(**inputs, masked_positions=order[:, : int(counts.max())]).logits.float()
        scores, tokens = logits.softmax(dim=-1).topk(min(MOST_FILLS, logits.shape[-1]))  # (batch, masks, fills)
        pairs = zip(scores.tolist(), tokens.tolist(), counts.tolist(), strict=True)
        return [
            [list(map(Fill, *mask)) for mask in zip(of_scores[:count], of_tokens[:count], strict=True)]
            for of_scores, of_tokens, count in pairs
        ]


HEADS: dict[type[UltraFastBertPreTrainedModel], type[Engine]] = {
    UltraFastBertForMaskedLM: MaskFiller,
    UltraFastBertForSequenceClassification: Classifier,
}
"""The engines of models with a head; an encoder without one has an `Embedder`."""


def load_engine(arguments: ServeArguments) -> Engine:
    """Loads a model for the task that it has a head for, and optimises it.

    Raises:
        UserError: the model cannot be found, loaded or served, or an option does not fit it. The message says what to
            do.
    """
    name = locate_model(arguments.model)
    try:
        with quiet_transformers():
            if cached_file(name, MODULES, _raise_exceptions_for_missing_entries=False) is not None:
                return _load_sentence_transformer(name, arguments)
            return _load_head(name, arguments)
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise almost anything
        raise UserError(f"model {arguments.model} cannot be loaded: {error}") from error


def _load_sentence_transformer(name: str, arguments: ServeArguments) -> Engine:
    if arguments.pooling != "auto":
        raise UserError(
            f"pooling is {arguments.pooling}; it should be auto, because {MODULES} of model {name} says how to pool"
        )
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError(
            f"model {name} is of sentence-transformers, which is not installed: pip install 'ultrafastbert[serve]'"
        ) from None
    sentences = SentenceTransformer(name, device="cpu")
    encoder = _encoder_in(sentences)
    if encoder is None:
        raise UserError(f"model {name} has no encoder of this package{_advice(name)}")
    if any(getattr(module, "include_prompt", True) is False for module in sentences):
        raise UserError(f"model {name} excludes prompts from its pooling, which is not supported")
    sentences = _optimized(sentences, encoder, arguments)
    encoder = cast(UltraFastBertPreTrainedModel, _encoder_in(sentences))
    limit = sentences.max_seq_length or math.inf
    tokenizer = sentences.tokenizer
    engine = Embedder(
        sentences,
        encoder,
        tokenizer,
        _max_length(encoder, tokenizer, arguments, limit),
        pool=lambda inputs: sentences(inputs)["sentence_embedding"],
        pooling=", ".join(
            str(getattr(module, "pooling_mode", type(module).__name__)) for module in list(sentences)[1:]
        ),
        dimensions=sentences.get_embedding_dimension(),
    )
    engine.prompts = dict(sentences.prompts)
    engine.default_prompt = engine.prompts.get(sentences.default_prompt_name or "", "")
    return engine


def _load_head(name: str, arguments: ServeArguments) -> Engine:
    config = AutoConfig.from_pretrained(name)
    if not isinstance(config, UltraFastBertConfig):
        raise UserError(f"model {name} is of the kind {config.model_type}{_advice(name)}")
    saved = (config.architectures or ["?"])[0]
    head: Any = {kind.__name__: kind for kind in (UltraFastBertModel, *HEADS)}.get(saved)
    if arguments.pooling != "auto":
        head = UltraFastBertModel
    if head is None:
        known = ", ".join(kind.__name__ for kind in (UltraFastBertModel, *HEADS))
        raise UserError(
            f"model {name} is a {saved}; it should be one of {known}, or pooling should be mean or cls, to serve "
            "embeddings of its encoder"
        )
    # mismatched sizes would be an error that names no tensor
    model, loading = head.from_pretrained(name, output_loading_info=True, ignore_mismatched_sizes=True)
    wrong = sorted({*loading["missing_keys"], *(mismatch[0] for mismatch in loading["mismatched_keys"])})
    if wrong:
        raise UserError(f"model {name} is not complete: {', '.join(wrong[:3])} are missing or have another size")
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = _optimized(model.eval(), model, arguments)
    common = model, model, tokenizer, _max_length(model, tokenizer, arguments)
    if head in HEADS:
        if head is UltraFastBertForMaskedLM and tokenizer.mask_token_id is None:
            raise UserError(f"the tokenizer of model {name} has no mask token; it should have one")
        return HEADS[head](*common)
    pooling = "cls" if arguments.pooling == "cls" else "mean"

    def pool(inputs: dict[str, Tensor]) -> Tensor:
        states = model(**inputs).last_hidden_state.float()  # (batch, seq, hidden)
        if pooling == "cls":
            return states[:, 0]
        weights = inputs["attention_mask"][..., None].float()
        return (states * weights).sum(dim=1) / weights.sum(dim=1)

    return Embedder(*common, pool=pool, pooling=pooling, dimensions=config.hidden_size)


def _advice(name: str) -> str:
    return f"; convert it first: ultrafastbert convert {name} DST"


def _encoder_in(model: nn.Module) -> UltraFastBertPreTrainedModel | None:
    return next((module for module in model.modules() if isinstance(module, UltraFastBertPreTrainedModel)), None)


def _optimized(model: Any, encoder: UltraFastBertPreTrainedModel, arguments: ServeArguments) -> Any:
    """The model optimised as the options say; one that was saved optimised as it is."""
    if not hasattr(encoder, "optimizations"):
        return optimize_for_inference(model, arguments.dtype, arguments.int8) if arguments.optimize else model.eval()
    for option, wanted in (("optimize", True), ("dtype", "auto"), ("int8", "auto")):
        if (given := getattr(arguments, option)) != wanted:
            raise UserError(
                f"{option} is {given}; it should be {wanted}, because model {arguments.model} was saved after "
                "optimize_for_inference"
            )
    return model


def _max_length(
    encoder: UltraFastBertPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: ServeArguments,
    limit: float = math.inf,
) -> int:
    """The longest text in tokens; positions that rotate have no limit of their own."""
    config = cast(UltraFastBertConfig, encoder.config)
    positions = math.inf if config.position_embedding == "rotary" else config.max_position_embeddings
    if arguments.max_length is None:
        return int(min(positions, config.max_position_embeddings, tokenizer.model_max_length, limit))
    if arguments.max_length > positions:
        raise UserError(
            f"max_length is {arguments.max_length}; it should be at most {positions}, the positions of the model"
        )
    return arguments.max_length
