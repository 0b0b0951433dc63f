"""Checkpoints of the original code <-> ours.

The original code (pbelcak/UltraFastBERT over JonasGeiping/cramming) keeps a nested table of options, `arch`,
in its configuration. The tables below say what becomes of every one of them: it is carried over, or it must
have the one value that this model is built with, or it has no effect on what the model computes. An option in
none of them is refused, so a conversion that succeeds is one that computes the same. Read from right to left,
the same tables give `to_original`.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ultrafastbert.configuration_ultrafastbert import UltraFastBertConfig
from ultrafastbert.modeling_ultrafastbert import (
    UltraFastBertForMaskedLM,
    UltraFastBertForSequenceClassification,
    UltraFastBertPreTrainedModel,
)
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.settings import flatten

State = dict[str, torch.Tensor]

# Options of the original and where they go in UltraFastBertConfig; two that go to one place must agree.
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
# The values of these options have other names here.
VALUES = {
    "classification_head.pooler": {"zero_index": "cls", "avg": "mean"},
    "classification_head.nonlin": {"Tanh": "tanh", "GELU": "gelu", "ReLU": "relu"},
}
# The feedforward options: `intermed_size` means two things.
FEEDFORWARD = {
    "ff": {"intermed_size": "intermediate_size"},
    "fff": {"intermed_size": "fff_trees", "intermed_depth": "fff_depth"},
}
# Options that can have only this value here.
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
# The same for options of the masked-LM head, which say nothing about a classifier.
REQUIRED_FOR_MASKED_LM = {
    "objective_layout": "MLM",
    "skip_head_transform": True,
    "decoder_bias": False,
    "tie_weights": True,
    "num_labels": None,
}
# Options that have no effect on what a trained model computes, with the original's default.
WITHOUT_EFFECT = {
    "architectures": ["ScriptableCrammedBERT"],  # the head is named by the key of the same name outside `arch`
    "init.type": "normal",
    "init.std": 0.02,
    "loss": "cross-entropy",
    "sparse_prediction": 0.25,
    # where half precision is left for single precision; in single precision there is no difference
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
# A buffer of each layer, 1 / sqrt(head_dim), which is no weight.
NORM_FACTOR = "encoder.layers.{}.attn.self_attention.norm_factor"
# The decoder's weight is that of the word embedding; a file may hold either or both.
TIED = ("decoder.weight", "encoder.embedding.word_embedding.weight")
HEADS = {
    UltraFastBertForMaskedLM: {},
    UltraFastBertForSequenceClassification: {
        "pooler.dense.weight": "pooler.dense.weight",
        "pooler.dense.bias": "pooler.dense.bias",
        "head.weight": "classifier.weight",
        "head.bias": "classifier.bias",
    },
}
CLASSES = {
    "ScriptableLMForPreTraining": UltraFastBertForMaskedLM,
    "ScriptableLMForSequenceClassification": UltraFastBertForSequenceClassification,
}
# Outside `arch`: what transformers keeps about classes.
LABELS = ("id2label", "label2id", "problem_type")

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
)


class ConversionError(UserError, ValueError):
    """A checkpoint that cannot be converted; the message names the file, option or tensor."""


def from_original(source: str | Path, destination: str | Path) -> UltraFastBertPreTrainedModel:
    """Converts a checkpoint directory of the original code, with the tokenizer's files if it has any.

    Args:
        source: a directory with `config.json` (or `model_config.json`, as the original's training writes it)
            and weights: `model.safetensors`, `pytorch_model.bin`, either of them in shards, or `model.pth`.
        destination: the directory to make, for `from_pretrained`; it may exist if it is empty. It appears
            when it is complete.

    Returns:
        The converted model, loaded from `destination`.

    Raises:
        ConversionError: not a checkpoint of the original, an option that has no equal here, or tensors that
            do not fit the options.
        FileExistsError: `destination` exists and is not an empty directory.
        OSError: `destination` cannot be written.
    """
    source, destination = Path(source), _free(destination)
    config_file, original = _read_original_config(source)
    weights_file, state = _read_weights(source)
    try:
        model_class = _model_class(original)
        config = _config_from_original(original, model_class, state)
    except (ConversionError, StrictDataclassError) as error:
        raise ConversionError(f"{config_file}: {error}") from error
    with torch.device("meta"):
        model = model_class(config)
    try:
        model.load_state_dict(_state_from_original(state, model), assign=True)
    except ConversionError as error:
        raise ConversionError(f"{weights_file}: {error}") from error
    model.tie_weights()

    with _made_whole(destination) as directory:
        model.save_pretrained(directory)
        _copy_tokenizer(source, directory)
    return model_class.from_pretrained(destination, dtype="auto")


def to_original(source: str | Path, destination: str | Path) -> UltraFastBertPreTrainedModel:
    """Converts a checkpoint directory of this project for the original code: the reverse of `from_original`.

    Args:
        source: a directory that `save_pretrained` wrote, of a masked-LM or a sequence-classification model.
        destination: the directory to make; it may exist if it is empty. It appears when it is complete.

    Returns:
        The model that was converted, loaded from `source`.

    Raises:
        ConversionError: not such a directory, or the original code has no equal of the model.
        FileExistsError: `destination` exists and is not an empty directory.
        OSError: `destination` cannot be written.
    """
    source, destination = Path(source), _free(destination)
    config = _read_json(source / "config.json")
    if config.get("model_type") != UltraFastBertConfig.model_type:
        raise ConversionError(
            f"{source / 'config.json'}: model_type is {config.get('model_type')!r}; it should be "
            f"{UltraFastBertConfig.model_type!r}"
        )
    try:
        model_class = _one_of({c.__name__: c for c in HEADS}, "architectures", config.get("architectures"))
        model = model_class.from_pretrained(source, dtype="auto")
        original, state = _config_to_original(model), _state_to_original(model)
    except ConversionError as error:
        raise ConversionError(f"{source / 'config.json'}: {error}") from error

    with _made_whole(destination) as directory:
        (directory / "config.json").write_text(json.dumps(original, indent=2, sort_keys=True) + "\n")
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
        _copy_tokenizer(source, directory)
    return model


# Options


def _model_class(original: dict[str, Any]) -> type[UltraFastBertPreTrainedModel]:
    if original.get("architectures") is not None:
        return _one_of(CLASSES, "architectures", original["architectures"])
    labels = original["arch"].get("num_labels")
    return UltraFastBertForMaskedLM if labels is None else UltraFastBertForSequenceClassification


def _config_from_original(
    original: dict[str, Any], model_class: type[UltraFastBertPreTrainedModel], state: State
) -> UltraFastBertConfig:
    options = flatten(original["arch"])
    feedforward = options.setdefault("intermed_type", "ff")  # the original's own default
    carried = CARRIED | _one_of(FEEDFORWARD, "arch.intermed_type", feedforward)
    required = REQUIRED | (REQUIRED_FOR_MASKED_LM if model_class is UltraFastBertForMaskedLM else {})
    _check_options(options, carried, required)
    if options["embedding.vocab_size"] is None:  # in a model_config.json, which is written before it is known
        options["embedding.vocab_size"] = next((len(state[name]) for name in TIED if name in state), None)

    fields = {"feedforward": "dense" if feedforward == "ff" else "fff"}
    if model_class is UltraFastBertForSequenceClassification:
        fields |= _labels_from_original(original)
    for name, field in carried.items():
        value = options[name]
        if name in VALUES:
            value = _one_of(VALUES[name], f"arch.{name}", value)
        if fields.setdefault(field, value) != value:
            raise ConversionError(f"arch.{name} is {value!r}; only {fields[field]!r}, as {field}, can be converted")
    return UltraFastBertConfig(**fields)


def _check_options(options: dict[str, Any], carried: dict[str, str], required: dict[str, Any]) -> None:
    """Refuses options that are unknown, have another value than the required one, or are missing."""
    known = {*carried, *required, *REQUIRED_FOR_MASKED_LM, *WITHOUT_EFFECT, "intermed_type", "intermed_depth"}
    for name, value in options.items():
        if name not in known:
            raise ConversionError(f"arch.{name} is {value!r}, an option unknown to this conversion")
        if name in required and value != required[name]:
            raise ConversionError(f"arch.{name} is {value!r}; only {required[name]!r} can be converted")
    if missing := sorted({*carried, *required} - options.keys()):
        raise ConversionError(f"arch.{missing[0]} is missing")


def _labels_from_original(original: dict[str, Any]) -> dict[str, Any]:
    """The number of classes, which `arch` has, and what is known about them outside `arch`."""
    count = original["arch"].get("num_labels")
    if not isinstance(count, int) or count < 1:
        raise ConversionError(f"arch.num_labels is {count!r}; it should be the number of classes")
    fields = {name: original[name] for name in LABELS if original.get(name) is not None}
    if len(fields.get("id2label", range(count))) != count:
        raise ConversionError(f"id2label names {len(fields['id2label'])} classes; arch.num_labels is {count}")
    return fields | {"num_labels": count}


def _config_to_original(model: UltraFastBertPreTrainedModel) -> dict[str, Any]:
    config = model.config
    if not config.tie_word_embeddings:
        raise ConversionError("tie_word_embeddings is False; the original always ties them")
    feedforward = "ff" if config.feedforward == "dense" else "fff"
    options = REQUIRED | REQUIRED_FOR_MASKED_LM | WITHOUT_EFFECT | {"intermed_type": feedforward}
    for name, field in (CARRIED | FEEDFORWARD[feedforward]).items():
        value = getattr(config, field)
        if name in VALUES:
            value = _one_of({ours: theirs for theirs, ours in VALUES[name].items()}, field, value)
        options[name] = value
    original = {
        "model_type": "crammedBERT",
        "architectures": [name for name, ours in CLASSES.items() if ours is type(model)],
        "torch_dtype": str(model.dtype).removeprefix("torch."),
    }
    if isinstance(model, UltraFastBertForSequenceClassification):
        options["num_labels"] = config.num_labels
        original |= {name: getattr(config, name) for name in LABELS}
    return original | {"arch": _unflatten(options)}


def _one_of(table: dict[str, Any], name: str, value: Any) -> Any:
    """The entry of `table` for the value of `name`; a list of one value counts as the value."""
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
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return nested


# Tensors


def _names(model: UltraFastBertPreTrainedModel) -> dict[str, str]:
    """Names of the original's tensors -> names of ours."""
    names = ENCODER | HEADS[type(model)]
    for i in range(model.config.num_hidden_layers):
        for theirs, ours in (LAYER | LAYER_FEEDFORWARD[model.config.feedforward]).items():
            names[f"encoder.layers.{i}.{theirs}"] = f"model.layers.{i}.{ours}"
    return names


def _layout_from_original(name: str, tensor: torch.Tensor, shape: torch.Size, heads: int) -> torch.Tensor:
    """The original's tensor `name` in our layout, of `shape`."""
    if name.endswith("query_key_value.weight"):  # rows (heads, 3, head_dim) -> (3, heads, head_dim)
        tensor = tensor.unflatten(0, (heads, 3, -1)).transpose(0, 1)
    elif name.endswith("linear_out.weight"):  # (hidden, trees * nodes) -> (trees * nodes, hidden)
        tensor = tensor.T
    return tensor.reshape(shape).contiguous()


def _layout_to_original(name: str, tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Our tensor in the layout of the original's tensor `name`."""
    if name.endswith("query_key_value.weight"):
        tensor = tensor.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)
    elif ".ffn.linear_" in name:
        tensor = tensor.flatten(0, 1)  # (trees, nodes, ...) -> (trees * nodes, ...)
        tensor = tensor.T if name.endswith("linear_out.weight") else tensor
    return tensor.contiguous()


def _state_from_original(state: State, model: UltraFastBertPreTrainedModel) -> State:
    """The original's tensors under our names and in our layout, all accounted for."""
    heads, names, ours = model.config.num_attention_heads, _names(model), model.state_dict()
    state = _without_norm_factors(state, model.config)
    if isinstance(model, UltraFastBertForMaskedLM):
        state = _with_one_embedding(state)
    for problem, tensors in (("lacks", names.keys() - state), ("has the unexpected", state.keys() - names)):
        if tensors:
            raise ConversionError(f"{problem} {_listed(tensors)}")

    converted = {}
    for theirs, name in names.items():
        tensor, shape = state[theirs], _layout_to_original(theirs, ours[name], heads).shape
        if tensor.shape != shape or not tensor.is_floating_point():
            raise ConversionError(
                f"{theirs} is {tensor.dtype} of shape {tuple(tensor.shape)}; by the configuration it should "
                f"be floating point of shape {tuple(shape)}"
            )
        converted[name] = _layout_from_original(theirs, tensor, ours[name].shape, heads)
    if isinstance(model, UltraFastBertForMaskedLM):
        converted["decoder.weight"] = converted[names[TIED[1]]]
    return converted


def _state_to_original(model: UltraFastBertPreTrainedModel) -> State:
    """Our tensors under the original's names and in its layout, with one copy of the tied weight."""
    heads, ours = model.config.num_attention_heads, model.state_dict()
    state = {theirs: _layout_to_original(theirs, ours[name], heads) for theirs, name in _names(model).items()}
    for i in range(model.config.num_hidden_layers):
        state[NORM_FACTOR.format(i)] = torch.tensor((heads / model.config.hidden_size) ** 0.5)
    return state


def _without_norm_factors(state: State, config: UltraFastBertConfig) -> State:
    """The state without the buffers of the attention's scale, which follows from the configuration."""
    state, scale = dict(state), (config.num_attention_heads / config.hidden_size) ** 0.5
    for i in range(config.num_hidden_layers):
        factor = state.pop(NORM_FACTOR.format(i), None)
        if factor is not None and not torch.allclose(factor.float(), torch.tensor(scale), rtol=1e-2):
            raise ConversionError(f"{NORM_FACTOR.format(i)} is {factor.tolist()}; only {scale} can be converted")
    return state


def _with_one_embedding(state: State) -> State:
    """The state with the tied weight under the embedding's name only, wherever it was."""
    state = dict(state)
    decoder, embedding = (state.get(name) for name in TIED)
    if decoder is not None and embedding is not None and not torch.equal(decoder, embedding):
        raise ConversionError(f"{TIED[0]} and {TIED[1]} differ; they should be the same weight")
    if decoder is not None:
        state[TIED[1]] = state.pop(TIED[0])
    return state


def _listed(names: set[str]) -> str:
    """Up to five names, in order, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# Files


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConversionError(f"{file} is missing, so {file.parent} is not the directory of a checkpoint")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConversionError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{file} holds a {type(content).__name__}; it should hold an object")
    return content


def _read_original_config(directory: Path) -> tuple[Path, dict[str, Any]]:
    """The file and content of the original's configuration, with `arch` and what is kept beside it."""
    file = directory / "model_config.json"
    if file.is_file() and not (directory / "config.json").is_file():
        return file, {"arch": _read_json(file)}  # as the original's own training saves: `arch` and nothing else
    file = directory / "config.json"
    config = _read_json(file)
    if config.get("model_type") != "crammedBERT":
        raise ConversionError(f"{file}: model_type is {config.get('model_type')!r}; it should be 'crammedBERT'")
    if not isinstance(config.get("arch"), dict):
        raise ConversionError(f"{file}: arch is {config.get('arch')!r}; it should be an object of options")
    return file, config


def _read_weights(directory: Path) -> tuple[Path, State]:
    """The file that was chosen and all tensors, without the prefixes of compiled and distributed models."""
    candidates = ("model.safetensors", "pytorch_model.bin")
    candidates = (*candidates, *(f"{name}.index.json" for name in candidates), "model.pth")
    file = next((directory / name for name in candidates if (directory / name).is_file()), None)
    if file is None:
        raise ConversionError(f"{directory} has no weights: one of {', '.join(candidates)} should be there")

    state: State = {}
    for shard in _shards(file) if file.suffix == ".json" else [file]:
        for name, tensor in _read_tensors(shard).items():
            name = re.sub(r"^((_orig_mod|module)\.)+", "", name)
            if name in state:
                raise ConversionError(f"{shard}: {name} is there a second time")
            state[name] = tensor
    return file, state


def _shards(index: Path) -> list[Path]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConversionError(f"{index}: weight_map is {weight_map!r}; it should name a file for every tensor")
    files = [index.parent / str(name) for name in sorted(set(weight_map.values()))]
    for file in files:
        if not file.is_file():
            raise ConversionError(f"{index} names {file.name}, which is missing")
    return files


def _read_tensors(file: Path) -> State:
    try:
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what readers raise on a broken file is anything
        raise ConversionError(f"{file} cannot be read: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ConversionError(f"{file} holds a {type(state).__name__}; it should hold named tensors and only them")
    return state


def _free(destination: str | Path) -> Path:
    """The destination, once it is sure that nothing is there that a conversion would destroy."""
    destination = Path(destination).resolve()
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"{destination} exists and is not an empty directory")
    return destination


@contextmanager
def _made_whole(destination: Path) -> Iterator[Path]:
    """A directory beside the destination that becomes it at the end, and vanishes on an error."""
    directory = destination.with_name(f".{destination.name}.{os.getpid()}.partial")
    directory.mkdir(parents=True)
    try:
        yield directory
        directory.rename(destination)
    except BaseException as error:
        shutil.rmtree(directory, ignore_errors=True)
        if isinstance(error, SafetensorError):  # a full disk, mostly
            raise OSError(f"{destination} cannot be written: {error}") from error
        raise


def _copy_tokenizer(source: Path, destination: Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)
