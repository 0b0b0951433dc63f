"""Conversion of checkpoints of the BERT family to models of this package.

transformers loads the checkpoint, so every format of weights that it reads can be converted. `families` has the names
of fields and tensors. Two things need more than another name: query, key and value become one matrix, and RoBERTa's
table of positions loses the rows before that of the first token.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ultrafastbert import modeling_ultrafastbert
from ultrafastbert.configuration_ultrafastbert import UltraFastBertConfig
from ultrafastbert.conversion.families import FAMILIES, FIXED, MISSING_HERE, Family, Head
from ultrafastbert.conversion.files import ConversionError, errors_name, exactly, find_model, read_json
from ultrafastbert.modeling_ultrafastbert import UltraFastBertModel, UltraFastBertPreTrainedModel
from ultrafastbert.utils.transformers import quiet_transformers
from ultrafastbert.utils.validation import Rule, check, one_of

REQUIRED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
"""Fields of their configuration that must have this value if they are there."""
CARRIED = ("id2label", "label2id", "problem_type")
"""Fields that transformers gives every configuration."""


class Plan(NamedTuple):
    """How a model is converted.

    Attributes:
        model: the converted model on the meta device, without weights.
        sources: the names of its tensors -> of their tensors, which are concatenated.
        first_position: the row of their table of positions that becomes the first of ours.
    """

    model: UltraFastBertPreTrainedModel
    sources: dict[str, list[str]]
    first_position: int


def load_encoder(source: str | Path) -> UltraFastBertPreTrainedModel:
    """Loads a model of this package or a checkpoint of the BERT family, which it converts in memory.

    Args:
        source: a directory or the name of a model on the Hub.

    Returns:
        A model of this package in evaluation mode, in the dtype of the checkpoint, with the head that it names in
        `architectures`. Tensors that it has no place for are named on standard error.

    Raises:
        ConversionError: `source` cannot be found or loaded, lacks weights, or has no equivalent in this package.
    """
    directory = find_model(source)
    config = read_json(directory / "config.json")
    if config.get("model_type") != UltraFastBertConfig.model_type:
        return from_bert(load_original(directory))
    with errors_name(directory / "config.json"):
        name = _class_name(config, UltraFastBertModel.__name__)
        check("architectures", name, one_of(*(c.__name__ for c in UltraFastBertPreTrainedModel.__subclasses__())))
    model, found = _load(getattr(modeling_ultrafastbert, name), directory)
    _refuse_missing(directory, found["missing_keys"])
    return model


def load_original(directory: Path) -> PreTrainedModel:
    """Loads a checkpoint of the BERT family as a model of transformers, in evaluation mode and its own dtype.

    Names of tensors that `from_bert` does not convert are printed to standard error.

    Raises:
        ConversionError: the checkpoint cannot be converted or loaded.
    """
    file = directory / "config.json"
    content = read_json(file)
    with errors_name(file):
        family = _family(content.get("model_type"))
        check("quantization_config", content.get("quantization_config"), exactly(None))
        config = AutoConfig.from_pretrained(directory)
        name = _class_name(content, f"{family.classes}Model")
        sources = make_plan(config, name).sources
    original, found = _load(getattr(transformers, name), directory)
    state, needed = original.state_dict(), {name for names in sources.values() for name in names}
    _refuse_missing(directory, needed & set(found["missing_keys"]))
    # a tied tensor has several names
    converted = {state[name].data_ptr() for name in needed}
    unused = {name for name, tensor in state.items() if tensor.data_ptr() not in converted}
    unused = sorted(unused - set(found["missing_keys"]) | set(found["unexpected_keys"]))
    if unused:
        print(f"note: tensors of {name} without an equivalent here: {', '.join(unused)}", file=sys.stderr)
    return original


def from_bert(original: PreTrainedModel) -> UltraFastBertPreTrainedModel:
    """Converts a model of transformers in memory.

    Args:
        original: a model of the BERT family, with or without a head. It does not change, and shares no memory with the
            result.

    Returns:
        The same model as one of this package, in evaluation mode, in the same dtype and on the same device.

    Raises:
        ConversionError: this package has no equivalent of the model.
    """
    model, sources, first_position = make_plan(original.config, type(original).__name__)
    theirs = original.state_dict()
    state = {name: torch.cat([theirs[source] for source in names]) for name, names in sources.items()}
    (positions,) = (name for name in state if name.endswith("position_embeddings.weight"))
    state[positions] = state[positions][first_position:].clone()
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model.eval()


def _class_name(content: dict[str, Any], default: str) -> str:
    """The class that a configuration names, or else the default."""
    names = content.get("architectures") or [default]
    check(
        "architectures", names, Rule(lambda names: isinstance(names, list) and len(names) == 1, "a list of one name")
    )
    return names[0]


def make_plan(config: PreTrainedConfig, class_name: str) -> Plan:
    """The plan for a model of transformers, given its configuration and the name of its class.

    Raises:
        ConversionError: this package has no equivalent; the message names the field or the class.
    """
    family = _family(config.model_type)
    heads = {f"{family.classes}{end}": head for end, head in family.heads.items()}
    if class_name not in heads:
        raise ConversionError(f"architectures is {class_name!r}; only {', '.join(heads)} can be converted")
    head = heads[class_name]
    for name, value in REQUIRED.items():
        _require(name, getattr(config, name, value), value)
    for name, value in head.required.items():
        _require(name, getattr(config, name), value)
    first_position = config.pad_token_id + 1 if family.positions_after_padding else 0
    with torch.device("meta"):
        model = head.model_class(_config(config, family, head, first_position))
    has_head = class_name != f"{family.classes}Model"
    return Plan(model, _sources(model, family, head, f"{family.encoder}." if has_head else ""), first_position)


def _family(model_type: Any) -> Family:
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    missing = MISSING_HERE.get(model_type)
    reason = "" if missing is None else f", which has what this package does not have, {missing}"
    raise ConversionError(f"model_type is {model_type!r}{reason}; only {', '.join(FAMILIES)} can be converted")


def _require(name: str, value: Any, required: Any) -> None:
    if value != required:
        raise ConversionError(f"{name} is {value!r}; only {required!r} can be converted")


def _config(config: PreTrainedConfig, family: Family, head: Head, first_position: int) -> UltraFastBertConfig:
    names = {**family.config, **head.config}
    fields: dict[str, Any] = {ours: getattr(config, theirs) for ours, theirs in names.items()}
    fields = {"classifier_activation": family.classifier_activation, **FIXED, **fields, **head.fixed}
    fields["max_position_embeddings"] -= first_position
    fields["classifier_hidden_size"] = fields["hidden_size"]
    if fields.get("embedding_size") == fields["hidden_size"]:
        fields["embedding_size"] = None  # there is no projection then
    if fields["classifier_dropout"] is None:
        fields["classifier_dropout"] = fields["hidden_dropout_prob"]
    if not fields["classifier_activation"]:  # that of ELECTRA's summary may be empty
        fields["classifier_activation"] = "linear"
    fields |= {name: getattr(config, name) for name in CARRIED}
    try:
        return UltraFastBertConfig(**fields)
    except (ValueError, StrictDataclassError) as error:
        raise ConversionError(str(error)) from error


def _sources(model: UltraFastBertPreTrainedModel, family: Family, head: Head, encoder: str) -> dict[str, list[str]]:
    """The names of our tensors -> of theirs; `encoder` is the prefix of their encoder's tensors."""
    ours = "" if isinstance(model, UltraFastBertModel) else "model."
    modules = {f"{ours}{name}": _with_prefix(encoder, theirs) for name, theirs in family.modules.items()}
    for i in range(model.config.num_hidden_layers):
        for name, theirs in family.layer_modules.items():
            modules[f"{ours}layers.{i}.{name}"] = _with_prefix(f"{encoder}{family.layers}.{i}.", theirs)
    for name, theirs in head.modules.items():
        modules[name] = _with_prefix("", theirs.replace("ENCODER.", encoder))
    tensors = [name.rpartition(".") for name in model.state_dict()]
    return {f"{module}.{kind}": [f"{theirs}.{kind}" for theirs in modules[module]] for module, _, kind in tensors}


def _with_prefix(prefix: str, names: str | tuple[str, ...]) -> list[str]:
    return [prefix + name for name in ([names] if isinstance(names, str) else names)]


def _load(model_class: Any, directory: Path) -> tuple[Any, dict[str, Any]]:
    """A model, and what transformers says of missing and unexpected tensors."""
    try:
        with quiet_transformers():
            return model_class.from_pretrained(directory, dtype="auto", weights_only=True, output_loading_info=True)
    except Exception as error:  # a broken file can raise almost anything
        raise ConversionError(f"{directory} cannot be loaded: {error}") from error


def _refuse_missing(directory: Path, names: Iterable[str]) -> None:
    if names := sorted(names):
        others = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise ConversionError(f"{directory} has no weights for {', '.join(names[:5])}{others}")
