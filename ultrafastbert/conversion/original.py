"""Conversion of checkpoints of the original UltraFastBERT code to models of this package, and back.

The original code (pbelcak/UltraFastBERT, based on JonasGeiping/cramming) stores a nested table of options, `arch`, in
its configuration. The tables below list every option: it is carried over, or it must have the one value that this
package implements, or it has no effect on what the model computes. An option in none of the tables is refused, so a
converted model computes the same as the original. `to_original` reads the same tables from right to left.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ultrafastbert.configuration_ultrafastbert import UltraFastBertConfig
from ultrafastbert.conversion import files
from ultrafastbert.conversion.files import OBJECT, ConversionError, State, errors_name, exactly
from ultrafastbert.modeling_ultrafastbert import (
    UltraFastBertForMaskedLM,
    UltraFastBertForSequenceClassification,
    UltraFastBertPreTrainedModel,
)
from ultrafastbert.utils.files import copy_tokenizer, new_directory, written_whole
from ultrafastbert.utils.settings import flatten
from ultrafastbert.utils.validation import Rule, check

MODEL_TYPE = "crammedBERT"
TRAINING_CONFIG = "model_config.json"  # the original's training saves `arch` alone, in this file
# Options of the original and their names in UltraFastBertConfig; two options with the same name here must agree.
CARRIED = {
    "hidden_size": "hidden_size",
    "num_transformer_layers": "num_hidden_layers",
    "norm_eps": "layer_norm_eps",
    "hidden_dropout_prob": "hidden_dropout_prob",
    "embedding.vocab_size": "vocab_size",
    "embedding.max_seq_length": "max_position_embeddings",
    "embedding.pad_token_id": "pad_token_id",
    "embedding.embedding_dim": "hidden_size",
    "embedding.dropout_prob": "hidden_dropout_prob",
    "attention.num_attention_heads": "num_attention_heads",
    "attention.dropout_prob": "attention_probs_dropout_prob",
    "classification_head.pooler": "classifier_pooling",
    "classification_head.head_dim": "classifier_hidden_size",
    "classification_head.nonlin": "classifier_activation",
    "classification_head.classifier_dropout": "classifier_dropout",
}
# The values of these options that have other names here.
VALUES = {
    "classification_head.pooler": {"zero_index": "cls", "avg": "mean"},
    "classification_head.nonlin": {"Tanh": "tanh", "GELU": "gelu", "ReLU": "relu"},
}
# Options of the feedforward layers by `intermed_type`: `intermed_size` counts neurons or trees.
FEEDFORWARD = {
    "ff": {"intermed_size": "intermediate_size"},
    "fff": {"intermed_size": "fff_trees", "intermed_depth": "fff_depth"},
}
# Options that must have this value.
REQUIRED = {
    "norm": "LayerNorm",
    "norm_scheme": "pre",
    "nonlin": "GELU",
    "use_bias": False,
    "final_norm": True,
    "ffn_layer_frequency": 1,
    "embedding.pos_embedding": "scaled-sinusoidal",
    "embedding.normalization": True,
    "attention.type": "self-attention",
    "attention.causal_attention": False,
    "attention.qkv_bias": False,
    "attention.rotary_embedding": False,
    "attention.sequence_op": "torch-softmax",
    "attention.skip_output_projection": False,
    "classification_head.include_ff_layer": True,
}
# The same for options of the masked-LM head, which have no effect on a classifier.
REQUIRED_FOR_MASKED_LM = {
    "objective_layout": "MLM",
    "skip_head_transform": True,
    "decoder_bias": False,
    "tie_weights": True,
}
# Options that have no effect on what a trained model computes, with the original's default.
WITHOUT_EFFECT = {
    "architectures": ["ScriptableCrammedBERT"],  # the `architectures` beside `arch` name the head
    "num_labels": None,  # the weight of the head and the configuration beside `arch` give the number of labels
    "init.type": "normal",
    "init.std": 0.02,
    "loss": "cross-entropy",
    "sparse_prediction": 0.25,
    # these two compute some parts in float32 when the model is in half precision
    "attention.seq_op_in_fp32": False,
    "embedding.stable_low_precision": False,
}

ENCODER = {
    "encoder.embedding.word_embedding.weight": "model.embeddings.word_embeddings.weight",
    "encoder.embedding.pos_embedding.scale_factor": "model.embeddings.position_scale",
    "encoder.embedding.norm.weight": "model.embeddings.norm.weight",
    "encoder.embedding.norm.bias": "model.embeddings.norm.bias",
    "encoder.final_norm.weight": "model.final_norm.weight",
    "encoder.final_norm.bias": "model.final_norm.bias",
}
NOT_IN_THE_ORIGINAL = {
    "embedding_size": None,
    "position_embedding": "sinusoidal",
    "type_vocab_size": 0,
    "norm_position": "pre",
    "projection_bias": False,
    "hidden_act": "gelu",
    "head_transform": False,
    "decoder_bias": False,
    "fff_leaf_size": None,
    "feedforward_sizes": None,
    "feedforward_skip": False,
}
"""Options of this package that the original does not have, and the only values that it can express."""
LAYER = {
    "norm1.weight": "attention_norm.weight",
    "norm1.bias": "attention_norm.bias",
    "attn.self_attention.query_key_value.weight": "attention.qkv_proj.weight",
    "attn.dense.weight": "attention.o_proj.weight",
    "norm2.weight": "feedforward_norm.weight",
    "norm2.bias": "feedforward_norm.bias",
}
LAYER_FEEDFORWARD = {
    "dense": {
        "ffn.dense_in.weight": "feedforward.up_proj.weight",
        "ffn.dense_out.weight": "feedforward.down_proj.weight",
    },
    "fff": {
        "ffn.linear_in.weight": "feedforward.weight_in",
        "ffn.linear_in.bias": "feedforward.bias_in",
        "ffn.linear_out.weight": "feedforward.weight_out",
    },
}
# A buffer of each layer, 1 / sqrt(head_dim); not a weight.
NORM_FACTOR = "encoder.layers.{}.attn.self_attention.norm_factor"
# The decoder and the word embedding have the same weight; a file may hold either name or both.
TIED = ("decoder.weight", "encoder.embedding.word_embedding.weight")
CLASSIFIER_WEIGHT = "head.weight"
HEADS: dict[type[UltraFastBertPreTrainedModel], dict[str, str]] = {
    UltraFastBertForMaskedLM: {},
    UltraFastBertForSequenceClassification: {
        "pooler.dense.weight": "pooler.dense.weight",
        "pooler.dense.bias": "pooler.dense.bias",
        CLASSIFIER_WEIGHT: "classifier.weight",
        "head.bias": "classifier.bias",
    },
}
CLASSES: dict[str, type[UltraFastBertPreTrainedModel]] = {
    "ScriptableLMForPreTraining": UltraFastBertForMaskedLM,
    "ScriptableLMForSequenceClassification": UltraFastBertForSequenceClassification,
}
# Beside `arch`, what transformers stores about labels.
LABELS = ("id2label", "label2id", "problem_type")
LABEL_NAMES = Rule(
    lambda names: isinstance(names, dict) and all(str(number).isdigit() for number in names),
    "an object of names by label number",
)


def from_original(source: str | Path, destination: str | Path) -> UltraFastBertPreTrainedModel:
    """Converts a checkpoint directory of the original code, with the files of its tokenizer if it has any.

    Args:
        source: a directory with `config.json` (or `model_config.json`, which the original's training writes) and
            weights: `model.safetensors`, `pytorch_model.bin`, either of them in shards, or `model.pth`.
        destination: the directory to create; it may exist if it is empty. It appears when it is complete.

    Returns:
        The converted model, loaded from `destination`.

    Raises:
        ConversionError: `source` is not a checkpoint of the original, it has an option without an equivalent here, or
            its tensors do not match its configuration.
        FileExistsError: `destination` exists and is not an empty directory.
        OSError: `destination` cannot be written.
    """
    source, destination = Path(source), new_directory(destination)
    config_file, original = _read_config(source)
    weights_file, state = files.read_weights(source)
    with errors_name(config_file):
        model_class = _model_class(original, state)
        config = _config_from_original(original, model_class, state)
        with torch.device("meta"):
            model = model_class(config)
    with errors_name(weights_file):
        model.load_state_dict(_state_from_original(state, model), assign=True)
    model.tie_weights()

    with written_whole(destination) as directory:
        model.save_pretrained(directory)
        copy_tokenizer(source, directory)
    return model_class.from_pretrained(destination, dtype="auto")


def to_original(source: str | Path, destination: str | Path) -> UltraFastBertPreTrainedModel:
    """Converts a checkpoint directory of this package for the original code, the reverse of `from_original`.

    Args:
        source: a directory that `save_pretrained` wrote, of a masked-LM or a sequence-classification model.
        destination: as in `from_original`.

    Returns:
        The model, loaded from `source`.

    Raises:
        ConversionError: `source` is not such a directory, or the original code has no equivalent of the model.
        FileExistsError, OSError: as in `from_original`.
    """
    source, destination = Path(source), new_directory(destination)
    config_file = source / "config.json"
    config = files.read_json(config_file)
    with errors_name(config_file):
        check("model_type", config.get("model_type"), exactly(UltraFastBertConfig.model_type))
        model_class = _one_of({c.__name__: c for c in HEADS}, "architectures", config.get("architectures"))
        for option, default in NOT_IN_THE_ORIGINAL.items():
            check(option, config.get(option, default), exactly(default))
        model = model_class.from_pretrained(source, dtype="auto")
        original = _config_to_original(model)

    with written_whole(destination) as directory:
        (directory / "config.json").write_text(json.dumps(original, indent=2, sort_keys=True) + "\n")
        save_file(_state_to_original(model), directory / "model.safetensors", metadata={"format": "pt"})
        copy_tokenizer(source, directory)
    return model


def is_original(directory: Path) -> bool:
    """Whether a directory is a checkpoint of the original code, by its configuration.

    Raises:
        ConversionError: it has no configuration, or one that cannot be read.
    """
    if (directory / TRAINING_CONFIG).is_file() and not (directory / "config.json").is_file():
        return True
    return files.read_json(directory / "config.json").get("model_type") == MODEL_TYPE


def _read_config(directory: Path) -> tuple[Path, dict[str, Any]]:
    """The original's configuration file and its content, with `arch` and what is stored beside it."""
    file = directory / TRAINING_CONFIG
    if file.is_file() and not (directory / "config.json").is_file():
        return file, {"arch": files.read_json(file)}
    file = directory / "config.json"
    config = files.read_json(file)
    with errors_name(file):
        check("model_type", config.get("model_type"), exactly(MODEL_TYPE))
        check("arch", config.get("arch"), OBJECT)
    return file, config


def _model_class(original: dict[str, Any], state: State) -> type[UltraFastBertPreTrainedModel]:
    if original.get("architectures") is not None:
        return _one_of(CLASSES, "architectures", original["architectures"])
    return UltraFastBertForSequenceClassification if CLASSIFIER_WEIGHT in state else UltraFastBertForMaskedLM


def _config_from_original(
    original: dict[str, Any], model_class: type[UltraFastBertPreTrainedModel], state: State
) -> UltraFastBertConfig:
    options = flatten(original["arch"])
    feedforward = options.setdefault("intermed_type", "ff")  # the original's default
    carried = CARRIED | _one_of(FEEDFORWARD, "arch.intermed_type", feedforward)
    required = REQUIRED | (REQUIRED_FOR_MASKED_LM if model_class is UltraFastBertForMaskedLM else {})
    _check_options(options, carried, required)
    if options["embedding.vocab_size"] is None:  # the original's training writes its file before the size is known
        options["embedding.vocab_size"] = next((len(state[name]) for name in TIED if name in state), None)

    fields: dict[str, Any] = {"feedforward": "dense" if feedforward == "ff" else "fff"}
    if model_class is UltraFastBertForSequenceClassification:
        fields |= _labels_from_original(original, state)
    for name, field in carried.items():
        value = options[name]
        if name in VALUES:
            value = _one_of(VALUES[name], f"arch.{name}", value)
        if fields.setdefault(field, value) != value:
            raise ConversionError(f"arch.{name} is {value!r}; only {fields[field]!r}, the {field}, can be converted")
    return UltraFastBertConfig(**fields)


def _check_options(options: dict[str, Any], carried: dict[str, str], required: dict[str, Any]) -> None:
    """Refuses unknown options, values other than the required ones, and missing options."""
    known = {*carried, *required, *REQUIRED_FOR_MASKED_LM, *WITHOUT_EFFECT, "intermed_type", "intermed_depth"}
    for name, value in options.items():
        if name not in known:
            raise ConversionError(f"arch.{name} is {value!r}; this option is unknown and cannot be converted")
        if name in required and value != required[name]:
            raise ConversionError(f"arch.{name} is {value!r}; only {required[name]!r} can be converted")
    if missing := sorted({*carried, *required} - options.keys()):
        raise ConversionError(f"arch.{missing[0]} is missing")


def _labels_from_original(original: dict[str, Any], state: State) -> dict[str, Any]:
    """The number of labels, their names and the problem type of a classifier.

    The head's weight `(labels, hidden)` gives the number. As in transformers, the configuration gives it by `id2label`
    or else by `num_labels`; it may have neither, because configurations of two labels are saved without them.
    """
    fields = {name: original[name] for name in LABELS if original.get(name) is not None}
    if "label2id" in fields:
        check("label2id", fields["label2id"], OBJECT)
        fields.setdefault("id2label", {index: name for name, index in fields["label2id"].items()})
    if "id2label" in fields:
        check("id2label", fields["id2label"], LABEL_NAMES)
        stated = "label2id" if original.get("id2label") is None else "id2label"
        number = len(fields["id2label"])
    else:
        stated, number = "num_labels", original.get("num_labels")
    if CLASSIFIER_WEIGHT not in state:
        return fields  # reported with all other missing tensors
    rows = state[CLASSIFIER_WEIGHT].shape[:1].numel()
    if number not in (None, rows):
        raise ConversionError(
            f"{stated} is {original[stated]!r}, but {CLASSIFIER_WEIGHT} has {rows} rows; "
            "it should have one row for each label"
        )
    return fields | {"num_labels": rows}


def _config_to_original(model: UltraFastBertPreTrainedModel) -> dict[str, Any]:
    config = model.config
    if not config.tie_word_embeddings:
        raise ConversionError("tie_word_embeddings is False; the original always ties the embeddings")
    feedforward = _one_of({"dense": "ff", "fff": "fff"}, "feedforward", config.feedforward)
    options = REQUIRED | REQUIRED_FOR_MASKED_LM | WITHOUT_EFFECT | {"intermed_type": feedforward}
    for name, field in (CARRIED | FEEDFORWARD[feedforward]).items():
        value = getattr(config, field)
        if name in VALUES:
            value = _one_of({ours: theirs for theirs, ours in VALUES[name].items()}, field, value)
        options[name] = value
    original = {
        "model_type": MODEL_TYPE,
        "architectures": [name for name, ours in CLASSES.items() if ours is type(model)],
        "torch_dtype": str(model.dtype).removeprefix("torch."),
    }
    if isinstance(model, UltraFastBertForSequenceClassification):
        options["num_labels"] = config.num_labels  # versions of the original differ in which of the two they read
        original |= {name: getattr(config, name) for name in LABELS}
    return original | {"arch": _unflatten(options)}


def _one_of(table: dict[str, Any], name: str, value: Any) -> Any:
    """The entry of `table` for the value of the option `name`; a list of one value counts as the value."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if not isinstance(value, str) or value not in table:
        raise ConversionError(f"{name} is {value!r}; only {' and '.join(map(repr, table))} can be converted")
    return table[value]


def _unflatten(options: dict[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` -> `{"a": {"b": 1}}`."""
    nested: dict[str, Any] = {}
    for name, value in options.items():
        *groups, last = name.split(".")
        group = nested
        for key in groups:
            group = group.setdefault(key, {})
        group[last] = value
    return nested


def _names(model: UltraFastBertPreTrainedModel) -> dict[str, str]:
    """The original's names of tensors -> ours."""
    names = ENCODER | HEADS[type(model)]
    for i in range(model.config.num_hidden_layers):
        for theirs, ours in (LAYER | LAYER_FEEDFORWARD[model.config.feedforward]).items():
            names[f"encoder.layers.{i}.{theirs}"] = f"model.layers.{i}.{ours}"
    return names


def _layout_from_original(name: str, tensor: Tensor, shape: torch.Size, heads: int) -> Tensor:
    """The original's tensor `name` in our layout, with `shape`."""
    if name.endswith("query_key_value.weight"):  # rows (heads, 3, head_dim) -> (3, heads, head_dim)
        tensor = tensor.unflatten(0, (heads, 3, -1)).transpose(0, 1)
    elif name.endswith("linear_out.weight"):  # (hidden, trees * nodes) -> (trees * nodes, hidden)
        tensor = tensor.T
    return tensor.reshape(shape).contiguous()


def _layout_to_original(name: str, tensor: Tensor, heads: int) -> Tensor:
    """Our tensor in the layout of the original's tensor `name`."""
    if name.endswith("query_key_value.weight"):
        tensor = tensor.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)
    elif ".ffn.linear_" in name:
        tensor = tensor.flatten(0, 1)  # (trees, nodes, ...) -> (trees * nodes, ...)
        tensor = tensor.T if name.endswith("linear_out.weight") else tensor
    return tensor.contiguous()


def _state_from_original(state: State, model: UltraFastBertPreTrainedModel) -> State:
    """The original's tensors under our names and in our layout; refuses missing, unexpected and misshapen ones."""
    heads, names, ours = model.config.num_attention_heads, _names(model), model.state_dict()
    state = _without_norm_factors(state, model.config)
    if isinstance(model, UltraFastBertForMaskedLM):
        state = _with_one_embedding(state)
    for problem, tensors in (("missing", names.keys() - state), ("unexpected", state.keys() - names)):
        if tensors:
            others = f" and {len(tensors) - 5} more" if len(tensors) > 5 else ""
            raise ConversionError(f"{problem} tensors: {', '.join(sorted(tensors)[:5])}{others}")

    converted = {}
    for theirs, name in names.items():
        tensor, shape = state[theirs], _layout_to_original(theirs, ours[name], heads).shape
        if tensor.shape != shape or not tensor.is_floating_point():
            raise ConversionError(
                f"{theirs} is {tensor.dtype} of shape {tuple(tensor.shape)}; according to the configuration it "
                f"should be floating-point of shape {tuple(shape)}"
            )
        converted[name] = _layout_from_original(theirs, tensor, ours[name].shape, heads)
    if isinstance(model, UltraFastBertForMaskedLM):
        converted["decoder.weight"] = converted[names[TIED[1]]]
    return converted


def _state_to_original(model: UltraFastBertPreTrainedModel) -> State:
    """Our tensors under the original's names and in its layout; the tied weight has one name."""
    heads, ours = model.config.num_attention_heads, model.state_dict()
    state = {theirs: _layout_to_original(theirs, ours[name], heads) for theirs, name in _names(model).items()}
    for i in range(model.config.num_hidden_layers):
        state[NORM_FACTOR.format(i)] = torch.tensor((heads / model.config.hidden_size) ** 0.5)
    return state


def _without_norm_factors(state: State, config: UltraFastBertConfig) -> State:
    """The state without the buffers that hold the scale of attention, which follows from the configuration."""
    state, scale = dict(state), (config.num_attention_heads / config.hidden_size) ** 0.5
    for i in range(config.num_hidden_layers):
        factor = state.pop(NORM_FACTOR.format(i), None)
        if factor is not None and not torch.allclose(factor.float(), torch.tensor(scale), rtol=1e-2):
            raise ConversionError(f"{NORM_FACTOR.format(i)} is {factor.tolist()}; only {scale} can be converted")
    return state


def _with_one_embedding(state: State) -> State:
    """The state with the tied weight under the embedding's name only."""
    state = dict(state)
    weights = [state.pop(name) for name in TIED if name in state]
    if len(weights) == 2 and not torch.equal(*weights):
        raise ConversionError(f"{TIED[0]} and {TIED[1]} differ; they should be the same weight")
    return state | {TIED[1]: weights[0]} if weights else state
