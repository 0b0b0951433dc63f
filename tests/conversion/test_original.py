"""Conversion from and to the original code: converted models compute the same, and errors name what is refused."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tests.conversion import original_code as original
from ultrafastbert import (
    UltraFastBertConfig,
    UltraFastBertForMaskedLM,
    UltraFastBertForSequenceClassification,
    UltraFastBertForTokenClassification,
    ops,
    optimize_for_inference,
)
from ultrafastbert.conversion.original import (
    CARRIED,
    REQUIRED,
    REQUIRED_FOR_MASKED_LM,
    WITHOUT_EFFECT,
    ConversionError,
    from_original,
    to_original,
)

MASKED_LM, CLASSIFIER = "ScriptableLMForPreTraining", "ScriptableLMForSequenceClassification"


def inputs():
    """Three sequences: a full one, one with padding on the right, and one with a gap in its mask."""
    input_ids = torch.randint(1, 40, (3, 10), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 10, dtype=torch.long)
    mask[1, 6:] = 0
    mask[2, 4] = 0
    return input_ids, mask


def converted(tmp_path, config, state=None):
    """The converted model and the tensors of the original."""
    state = original.state(config) if state is None else state
    model = from_original(original.write(tmp_path / "source", config, state), tmp_path / "ours")
    return model.eval(), state


def refused(tmp_path, config, state=None, match=""):
    source = original.write(tmp_path / "source", config, original.state(config) if state is None else state)
    with pytest.raises(ConversionError, match=match):
        from_original(source, tmp_path / "ours")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


# The same function


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"intermed_size": 5, "intermed_depth": 0},
        {"intermed_size": 1, "intermed_depth": 4, "num_transformer_layers": 1},
        {"intermed_type": "ff", "intermed_size": 36},
    ],
)
def test_masked_lm_computes_the_same(tmp_path, options):
    config = original.config(**options)
    model, state = converted(tmp_path, config)
    input_ids, mask = inputs()
    with torch.no_grad():
        output = model(input_ids, attention_mask=mask, output_hidden_states=True)
        unmasked = model(input_ids)
    real = mask.bool()
    expected = original.encode(config, state, input_ids, mask)
    torch.testing.assert_close(output.hidden_states[-1][real], expected[real], atol=1e-5, rtol=1e-5)
    expected = original.masked_lm(config, state, input_ids, mask)
    torch.testing.assert_close(output.logits[real], expected[real], atol=1e-5, rtol=1e-5)
    expected = original.masked_lm(config, state, input_ids)
    torch.testing.assert_close(unmasked.logits, expected, atol=1e-5, rtol=1e-5)


THREE_LABELS = {"id2label": {"0": "no", "1": "maybe", "2": "yes"}, "label2id": {"no": 0, "maybe": 1, "yes": 2}}


@pytest.mark.parametrize("feedforward", [{}, {"intermed_type": "ff", "intermed_size": 36}])
@pytest.mark.parametrize("pooler, nonlin", [("zero_index", "Tanh"), ("avg", "GELU"), ("avg", "ReLU")])
@pytest.mark.parametrize("top_level", [{}, {"num_labels": 1}, THREE_LABELS], ids=["two", "one", "three"])
def test_classifier_computes_the_same(tmp_path, feedforward, pooler, nonlin, top_level):
    head = {"classification_head__pooler": pooler, "classification_head__nonlin": nonlin}
    config = original.config(CLASSIFIER, **head, **feedforward) | top_level
    model, state = converted(tmp_path, config)
    input_ids, _ = inputs()
    with torch.no_grad():
        logits = model(input_ids).logits
    assert logits.shape == (3, original.number_of_labels(config))
    torch.testing.assert_close(logits, original.classify(config, state, input_ids), atol=1e-5, rtol=1e-5)


def test_a_converted_average_ignores_padding(tmp_path):
    config = original.config(CLASSIFIER, classification_head__pooler="avg")
    model, state = converted(tmp_path, config)
    input_ids, mask = inputs()
    with torch.no_grad():
        padded = model(input_ids[1:2], attention_mask=mask[1:2]).logits
    alone = original.classify(config, state, input_ids[1:2, :6])
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif("UFB_ORIGINAL_CHECKPOINTS" not in os.environ, reason="names a directory of checkpoints")
def test_checkpoints_that_the_original_code_wrote(tmp_path):
    """Each directory holds its inputs and outputs, `expected.safetensors`, beside the checkpoint."""
    sources = sorted(
        file.parent for file in Path(os.environ["UFB_ORIGINAL_CHECKPOINTS"]).glob("*/expected.safetensors")
    )
    assert sources
    for source in sources:
        model = from_original(source, tmp_path / source.name).eval()
        expected = load_file(source / "expected.safetensors")
        input_ids, mask = expected["input_ids"], expected["attention_mask"]
        with torch.no_grad():
            output = model(input_ids, attention_mask=mask, output_hidden_states=True)
            unmasked = model(input_ids, output_hidden_states=True)
        real = mask.bool()
        hidden, unmasked = output.hidden_states[-1][real], unmasked.hidden_states[-1]
        torch.testing.assert_close(hidden, expected["hidden"][real], atol=1e-4, rtol=0)
        torch.testing.assert_close(unmasked, expected["hidden_nomask"], atol=1e-4, rtol=0)
        torch.testing.assert_close(output.logits[real], expected["logits"][real], atol=1e-4, rtol=0)
        assert_same_for_every_backend(model, input_ids, mask, expected["logits"], atol=1e-4)


def assert_same_for_every_backend(model, input_ids, mask, expected, atol):
    """With each backend of the trees, and after `optimize_for_inference`."""
    real = mask.bool()
    exact = optimize_for_inference(model, dtype="float32", int8=False, verbose=False)
    rounded = optimize_for_inference(model, dtype="bfloat16", int8=True, verbose=False)
    with torch.no_grad():
        for backend in ops.BACKENDS:
            if backend == "native" and not ops.native.available():
                continue
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("UFB_FFF_BACKEND", backend)
                logits = model(input_ids, attention_mask=mask).logits
            torch.testing.assert_close(logits[real], expected[real], atol=atol, rtol=0)
        logits = exact(input_ids, attention_mask=mask).logits
        torch.testing.assert_close(logits[real], expected[real], atol=atol, rtol=0)
        logits = rounded(input_ids, attention_mask=mask).logits.float()
        assert (logits - expected)[real].norm() < 0.1 * expected[real].norm()


@pytest.mark.parametrize("options", [{}, {"intermed_size": 1, "intermed_depth": 4}, {"intermed_type": "ff"}])
def test_every_backend_and_the_optimized_model_compute_the_same(tmp_path, options):
    config = original.config(**options)
    model, state = converted(tmp_path, config)
    input_ids, mask = inputs()
    expected = original.masked_lm(config, state, input_ids, mask)
    assert_same_for_every_backend(model, input_ids, mask, expected, atol=1e-5)


# What is carried over


def test_options_are_carried_over(tmp_path):
    model, _ = converted(tmp_path, original.config(CLASSIFIER))
    config = model.config
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (40, 24, 2)
    assert (config.num_attention_heads, config.max_position_embeddings, config.pad_token_id) == (3, 12, 0)
    assert (config.feedforward, config.fff_trees, config.fff_depth) == ("fff", 2, 3)
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.1, 0.2)
    assert (config.classifier_hidden_size, config.classifier_dropout, config.num_labels) == (20, 0.3, 2)
    assert (config.classifier_pooling, config.classifier_activation) == ("mean", "tanh")
    assert config.layer_norm_eps == 1e-12


@pytest.mark.parametrize("number_in_arch", [3, 5, None, "many"])
@pytest.mark.parametrize(
    "top_level, id2label, problem_type",
    [
        ({}, {0: "LABEL_0", 1: "LABEL_1"}, None),
        ({"id2label": None, "num_labels": None}, {0: "LABEL_0", 1: "LABEL_1"}, None),
        ({"num_labels": 4}, {i: f"LABEL_{i}" for i in range(4)}, None),
        (
            THREE_LABELS | {"problem_type": "single_label_classification"},
            {0: "no", 1: "maybe", 2: "yes"},
            "single_label_classification",
        ),
        ({"id2label": {"0": "score"}, "problem_type": "regression"}, {0: "score"}, "regression"),
        (
            {"id2label": {"0": "a", "1": "b", "2": "c"}, "problem_type": "multi_label_classification"},
            {0: "a", 1: "b", 2: "c"},
            "multi_label_classification",
        ),
    ],
)
def test_the_top_level_gives_labels_and_problem_type(tmp_path, top_level, id2label, problem_type, number_in_arch):
    config = original.config(CLASSIFIER, num_labels=number_in_arch) | top_level
    state = original.state(config | {"id2label": id2label})
    model, _ = converted(tmp_path, config, state)
    assert model.config.id2label == id2label and model.num_labels == len(id2label)
    assert model.config.problem_type == problem_type


def test_label2id_alone_gives_the_names(tmp_path):
    config = original.config(CLASSIFIER) | {"label2id": {"no": 0, "yes": 1}}
    model, _ = converted(tmp_path, config)
    assert model.config.id2label == {0: "no", 1: "yes"} and model.config.label2id == {"no": 0, "yes": 1}


def test_without_labels_the_head_decides(tmp_path):
    """Versions of the original that read `arch.num_labels` save no labels at the top level."""
    config = original.config(CLASSIFIER)
    state = original.state(config | {"num_labels": 3})
    model, _ = converted(tmp_path, config, state)
    assert model.num_labels == 3


@pytest.mark.parametrize(
    "top_level, match",
    [
        ({"num_labels": 3}, "num_labels is 3, but head.weight has 2 rows"),
        ({"num_labels": "2"}, "num_labels is '2', but head.weight has 2 rows"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "id2label is {'0': 'a', .*}, but head.weight has 2 rows"),
        ({"label2id": {"a": 0}}, "label2id is {'a': 0}, but head.weight has 2 rows"),
        ({"id2label": ["a", "b"]}, r"id2label is \['a', 'b'\]; it should be an object of names by label number"),
        ({"id2label": {"a": "b", "c": "d"}}, "id2label is {'a': 'b', 'c': 'd'}; it should be an object of names by"),
        ({"label2id": "ab"}, "label2id is 'ab'; it should be an object"),
    ],
)
def test_labels_that_contradict_the_head_are_refused(tmp_path, top_level, match):
    """Whatever `arch.num_labels` says; it agrees here."""
    config = original.config(CLASSIFIER, num_labels=2)
    refused(tmp_path, config | top_level, original.state(config), match=rf"config\.json: {match}")


def test_a_head_with_one_label_and_a_problem_of_several_is_refused(tmp_path):
    config = original.config(CLASSIFIER) | {"num_labels": 1, "problem_type": "single_label_classification"}
    refused(tmp_path, config, match="config.json: (.|\n)*problem_type")


def test_dtype_is_kept(tmp_path):
    config = original.config()
    state = {name: tensor.bfloat16() for name, tensor in original.state(config).items()}
    model, _ = converted(tmp_path, config, state)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_tokenizer_files_are_copied(tmp_path):
    config = original.config()
    source = original.write(tmp_path / "source", config, original.state(config))
    (source / "tokenizer.json").write_text('{"version": "1.0"}')
    (source / "vocab.txt").write_text("[PAD]\n")
    from_original(source, tmp_path / "ours")
    assert (tmp_path / "ours" / "tokenizer.json").read_text() == '{"version": "1.0"}'
    assert (tmp_path / "ours" / "vocab.txt").read_text() == "[PAD]\n"


@pytest.mark.parametrize("absent", [[], ["decoder.weight"], ["encoder.embedding.word_embedding.weight"]])
def test_one_copy_of_the_tied_weight_is_enough(tmp_path, absent):
    config = original.config()
    state = {name: tensor for name, tensor in original.state(config).items() if name not in absent}
    model, _ = converted(tmp_path, config, state)
    assert model.decoder.weight is model.model.embeddings.word_embeddings.weight
    torch.testing.assert_close(
        model.decoder.weight, original.state(config)["decoder.weight"], atol=0, rtol=0, check_dtype=True
    )


def test_copies_of_the_tied_weight_that_differ_are_refused(tmp_path):
    config = original.config()
    state = original.state(config)
    state["decoder.weight"][3, 2] += 1
    refused(tmp_path, config, state, match=r"decoder\.weight and encoder\.embedding.* differ")


# Options


@pytest.mark.parametrize("name", sorted({*CARRIED, *REQUIRED, *REQUIRED_FOR_MASKED_LM}))
def test_a_missing_option_is_refused(tmp_path, name):
    config = original.config()
    *groups, last = name.split(".")
    place = config["arch"]
    for group in groups:
        place = place[group]
    del place[last]
    refused(
        tmp_path,
        config,
        original.state(original.config()),
        match=rf"config\.json: arch\.{re.escape(name)} is missing",
    )


@pytest.mark.parametrize(
    "name, value",
    [
        ("norm", "RMSNorm"),
        ("norm", "ScaleNorm"),
        ("norm", "ApexLayerNorm"),
        ("norm_scheme", "post"),
        ("nonlin", "GELUglu"),
        ("nonlin", "ReLU"),
        ("use_bias", True),
        ("final_norm", False),
        ("ffn_layer_frequency", 2),
        ("intermed_type", "moe"),
        ("embedding.pos_embedding", "learned"),
        ("embedding.pos_embedding", "sinusoidal"),
        ("embedding.pos_embedding", None),
        ("embedding.normalization", False),
        ("embedding.embedding_dim", 12),
        ("embedding.dropout_prob", 0.0),
        ("attention.type", "flash"),
        ("attention.type", "pytorch"),
        ("attention.causal_attention", True),
        ("attention.qkv_bias", True),
        ("attention.rotary_embedding", True),
        ("attention.rotary_embedding", "sanity"),
        ("attention.sequence_op", "torch-norm"),
        ("attention.skip_output_projection", True),
        ("classification_head.pooler", "max"),
        ("classification_head.pooler", "lse"),
        ("classification_head.nonlin", "Mish"),
        ("classification_head.include_ff_layer", False),
        ("objective_layout", "SCRIPT"),
        ("skip_head_transform", False),
        ("decoder_bias", True),
        ("tie_weights", False),
        ("attention.window", 64),
        ("mixture", {"experts": 4}),
    ],
)
def test_an_option_without_an_equivalent_is_refused(tmp_path, name, value):
    config = original.config(**{name.replace(".", "__"): value})
    match = rf"config\.json: arch\.{re.escape(name)}(\.experts)? is "
    refused(tmp_path, config, original.state(original.config()), match=match)


def test_another_value_of_a_required_option_is_refused(tmp_path):
    for i, name in enumerate({**REQUIRED, **REQUIRED_FOR_MASKED_LM}):
        config = original.config(**{name.replace(".", "__"): "another"})
        match = rf"arch\.{re.escape(name)} is 'another'; only .* can be converted"
        refused(tmp_path / str(i), config, original.state(original.config()), match=match)


@pytest.mark.parametrize("name", sorted({*WITHOUT_EFFECT}))
def test_options_without_effect_may_be_anything(tmp_path, name):
    config = original.config(**{name.replace(".", "__"): "anything"})
    model, _ = converted(tmp_path, config, original.state(original.config()))
    assert model.config.feedforward == "fff"


def test_a_classifier_does_not_need_the_options_of_the_masked_lm_head(tmp_path):
    config = original.config(CLASSIFIER, objective_layout="SCRIPT", skip_head_transform=False, decoder_bias=True)
    model, _ = converted(tmp_path, config)
    assert model.num_labels == 2


@pytest.mark.parametrize("value", [-1, "64", None])
def test_an_invalid_value_is_refused(tmp_path, value):
    config = original.config(num_transformer_layers=value)
    refused(tmp_path, config, original.state(original.config()), match="config.json: (.|\n)*num_hidden_layers")


@pytest.mark.parametrize(
    "head", ["ScriptableLM", "ScriptableLMForSCRIPTTraining", "ScriptableLMForTokenClassification"]
)
def test_another_head_is_refused(tmp_path, head):
    config = original.config() | {"architectures": [head]}
    refused(tmp_path, config, original.state(original.config()), match=f"architectures is '{head}'; only")


# Tensors


@pytest.mark.parametrize("config", [original.config(), original.config(CLASSIFIER)], ids=["mlm", "classifier"])
def test_a_missing_tensor_is_named(tmp_path, config):
    tied = {"decoder.weight", "encoder.embedding.word_embedding.weight"}
    for i, name in enumerate(original.state(config)):
        if name in tied & original.state(config).keys() and "decoder.weight" in original.state(config):
            continue
        if name.endswith("norm_factor"):
            continue
        state = original.state(config)
        del state[name]
        refused(tmp_path / str(i), config, state, match=rf"model\.safetensors: missing tensors: {re.escape(name)}$")


def test_both_copies_of_the_tied_weight_missing_are_named(tmp_path):
    config = original.config()
    state = original.state(config)
    del state["decoder.weight"], state["encoder.embedding.word_embedding.weight"]
    refused(tmp_path, config, state, match="missing tensors: encoder.embedding.word_embedding.weight")


def test_an_unexpected_tensor_is_named(tmp_path):
    config = original.config()
    state = original.state(config) | {"prediction_head.dense.weight": torch.zeros(24, 24)}
    refused(tmp_path, config, state, match="unexpected tensors: prediction_head.dense.weight")


def test_more_layers_than_configured_are_named(tmp_path):
    config = original.config(num_transformer_layers=1)
    refused(
        tmp_path,
        config,
        original.state(original.config()),
        match=r"unexpected tensors: encoder\.layers\.1.* and \d+ more",
    )


@pytest.mark.parametrize(
    "name, option",
    [
        ("encoder.layers.0.ffn.linear_in.weight", {"intermed_depth": 2}),
        ("encoder.embedding.word_embedding.weight", {"embedding__vocab_size": 41}),
    ],
)
def test_a_shape_that_disagrees_with_the_options_is_named(tmp_path, name, option):
    refused(
        tmp_path,
        original.config(**option),
        original.state(original.config()),
        match=f"{name} is .* should be",
    )


def test_integer_weights_are_refused(tmp_path):
    config = original.config()
    state = original.state(config)
    state["encoder.final_norm.weight"] = state["encoder.final_norm.weight"].to(torch.int8)
    refused(tmp_path, config, state, match="encoder.final_norm.weight is torch.int8")


def test_another_scale_of_attention_is_refused(tmp_path):
    config = original.config()
    state = original.state(config)
    state["encoder.layers.1.attn.self_attention.norm_factor"] *= 2
    refused(tmp_path, config, state, match="encoder.layers.1.attn.self_attention.norm_factor is")


# Files


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_compiled_and_distributed_models(tmp_path, prefix):
    config = original.config()
    state = {prefix + name: tensor for name, tensor in original.state(config).items()}
    model, _ = converted(tmp_path, config, state)
    input_ids, _ = inputs()
    with torch.no_grad():
        logits = model(input_ids).logits
    expected = original.masked_lm(config, original.state(config), input_ids)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_a_tensor_with_and_without_prefix_is_refused(tmp_path):
    config = original.config()
    state = original.state(config) | {"module.encoder.final_norm.weight": torch.ones(24)}
    refused(tmp_path, config, state, match="a second tensor is named encoder.final_norm.weight")


def save_shards(directory, name, state, save):
    """The state in two files with an index, as transformers writes them."""
    keys = sorted(state)
    stem, suffix = name.rsplit(".", 1)
    index = {"metadata": {}, "weight_map": {}}
    for i, part in enumerate((keys[: len(keys) // 2], keys[len(keys) // 2 :]), start=1):
        file = f"{stem}-0000{i}-of-00002.{suffix}"
        save({key: state[key] for key in part}, directory / file)
        index["weight_map"] |= dict.fromkeys(part, file)
    (directory / f"{name}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name, sharded",
    [
        ("model.safetensors", False),
        ("model.safetensors", True),
        ("pytorch_model.bin", False),
        ("pytorch_model.bin", True),
        ("model.pth", False),
    ],
)
def test_all_formats_of_weights(tmp_path, name, sharded):
    config = original.config()
    state = original.state(config)
    source = original.write(tmp_path / "source", config, {})
    (source / "model.safetensors").unlink()
    save = save_file if name.endswith("safetensors") else torch.save
    if sharded:
        save_shards(source, name, state, save)
    else:
        save(state, source / name)
    model = from_original(source, tmp_path / "ours").eval()
    input_ids, _ = inputs()
    with torch.no_grad():
        logits = model(input_ids).logits
    torch.testing.assert_close(logits, original.masked_lm(config, state, input_ids), atol=1e-5, rtol=1e-5)


def test_a_missing_shard_is_named(tmp_path):
    config = original.config()
    source = original.write(tmp_path / "source", config, {})
    (source / "model.safetensors").unlink()
    save_shards(source, "model.safetensors", original.state(config), save_file)
    (source / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConversionError, match="model-00002-of-00002.safetensors, which is missing"):
        from_original(source, tmp_path / "ours")


def test_a_checkpoint_of_the_original_training(tmp_path):
    """It has `arch` alone, without the size of the vocabulary, and a `model.pth`."""
    config = original.config()
    state = original.state(config)
    source = tmp_path / "source"
    source.mkdir()
    arch = original.config(embedding__vocab_size=None)["arch"]
    (source / "model_config.json").write_text(json.dumps(arch))
    torch.save(state, source / "model.pth")
    model = from_original(source, tmp_path / "ours").eval()
    assert isinstance(model, UltraFastBertForMaskedLM) and model.config.vocab_size == 40
    input_ids, _ = inputs()
    with torch.no_grad():
        logits = model(input_ids).logits
    torch.testing.assert_close(logits, original.masked_lm(config, state, input_ids), atol=1e-5, rtol=1e-5)


def test_a_classifier_without_architectures(tmp_path):
    """The weight of the head says that it is one, although `arch.num_labels` does not."""
    config = original.config(CLASSIFIER, num_labels=None) | {"architectures": None}
    state = original.state(config | {"architectures": [CLASSIFIER]})
    model, _ = converted(tmp_path, config, state)
    assert isinstance(model, UltraFastBertForSequenceClassification)


def break_config(text):
    return lambda source: (source / "config.json").write_bytes(text)


@pytest.mark.parametrize(
    "damage, match",
    [
        (lambda source: (source / "config.json").unlink(), "config.json is missing"),
        (break_config(b"{"), "config.json is not JSON: .*line 1"),
        (break_config(b"\xff\xfe"), "config.json is not JSON"),
        (break_config(b"[]"), "config.json holds a list"),
        (break_config(b'{"model_type": "bert"}'), "model_type is 'bert'; it should be 'crammedBERT'"),
        (break_config(b'{"model_type": "crammedBERT"}'), "arch is None"),
        (
            lambda source: (source / "model.safetensors").unlink(),
            "has no weights; it should have one of model.safetensors",
        ),
        (lambda source: os.truncate(source / "model.safetensors", 1000), "model.safetensors cannot be read"),
        (lambda source: os.truncate(source / "model.safetensors", 0), "model.safetensors cannot be read"),
    ],
)
def test_an_error_names_the_broken_file(tmp_path, damage, match):
    config = original.config()
    source = original.write(tmp_path / "source", config, original.state(config))
    damage(source)
    with pytest.raises(ConversionError, match=match):
        from_original(source, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("content", [[1, 2], {"state": [torch.zeros(1)]}, {"step": 3}])
def test_a_weights_file_that_holds_something_else_is_refused(tmp_path, content):
    config = original.config()
    source = original.write(tmp_path / "source", config, {})
    (source / "model.safetensors").unlink()
    torch.save(content, source / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="pytorch_model.bin holds a"):
        from_original(source, tmp_path / "ours")


def test_code_in_a_pickle_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    config = original.config()
    source = original.write(tmp_path / "source", config, {})
    (source / "model.safetensors").unlink()
    torch.save({"encoder.final_norm.weight": Payload()}, source / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="pytorch_model.bin cannot be read"):
        from_original(source, tmp_path / "ours")
    assert not (tmp_path / "ran").exists()


def test_a_directory_that_does_not_exist(tmp_path):
    with pytest.raises(ConversionError, match="nowhere"):
        from_original(tmp_path / "nowhere", tmp_path / "ours")


# The destination


def test_nothing_is_overwritten(tmp_path):
    config = original.config()
    source = original.write(tmp_path / "source", config, original.state(config))
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not an empty directory"):
        from_original(source, tmp_path / "ours")
    with pytest.raises(FileExistsError, match="not an empty directory"):
        from_original(source, source)
    assert (tmp_path / "ours" / "notes.txt").read_text() == "mine"


def test_an_empty_directory_and_missing_parents_are_fine(tmp_path):
    config = original.config()
    source = original.write(tmp_path / "source", config, original.state(config))
    (tmp_path / "empty").mkdir()
    from_original(source, tmp_path / "empty")
    from_original(source, tmp_path / "some" / "where")
    assert (tmp_path / "empty" / "config.json").is_file() and (tmp_path / "some" / "where" / "config.json").is_file()


@pytest.mark.parametrize(
    "error, raised",
    [(KeyboardInterrupt(), KeyboardInterrupt), (SafetensorError("No space left on device"), OSError)],
)
def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch, error, raised):
    config = original.config()
    source = original.write(tmp_path / "source", config, original.state(config))

    def interrupt(self, directory, **kwargs):
        (Path(directory) / "config.json").write_text("{}")
        raise error

    monkeypatch.setattr(UltraFastBertForMaskedLM, "save_pretrained", interrupt)
    with pytest.raises(raised):
        from_original(source, tmp_path / "ours")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


# The reverse


@pytest.mark.parametrize("feedforward", [{}, {"intermed_type": "ff", "intermed_size": 36}])
@pytest.mark.parametrize(
    "head, top_level",
    [
        (MASKED_LM, {}),
        (CLASSIFIER, {}),
        (CLASSIFIER, THREE_LABELS | {"problem_type": "multi_label_classification"}),
        (CLASSIFIER, {"id2label": {"0": "score"}, "label2id": {"score": 0}, "problem_type": "regression"}),
    ],
)
def test_there_and_back(tmp_path, head, top_level, feedforward):
    config = original.config(head, **feedforward) | top_level
    _, state = converted(tmp_path, config)
    to_original(tmp_path / "ours", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == state.keys() - {"decoder.weight"}
    for name, tensor in back.items():
        torch.testing.assert_close(tensor, state[name], atol=0, rtol=0)
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert written["architectures"] == [head] and written["model_type"] == "crammedBERT"
    assert written | top_level == written
    if feedforward:
        config["arch"].pop("intermed_depth")  # without effect on a dense layer
    if head == CLASSIFIER:
        config["arch"]["num_labels"] = original.number_of_labels(config)
        assert len(written["id2label"]) == original.number_of_labels(config)
    assert written["arch"] == config["arch"]
    from_original(tmp_path / "back", tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "ours" / "config.json").read_text()


def ours(tmp_path, model_class, **options):
    config = UltraFastBertConfig(
        vocab_size=40,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        fff_depth=1,
        classifier_hidden_size=4,
        **options,
    )
    model_class(config).save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


@pytest.mark.parametrize(
    "model_class, options, match",
    [
        (UltraFastBertForMaskedLM, {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        (UltraFastBertForMaskedLM, {"classifier_activation": "silu"}, "classifier_activation is 'silu'"),
        (UltraFastBertForMaskedLM, {"fff_trees": 1, "fff_leaf_size": 2}, "fff_leaf_size is 2; it should be None"),
        (UltraFastBertForMaskedLM, {"feedforward": "none"}, "feedforward is 'none'; only 'dense' and 'fff'"),
        (UltraFastBertForTokenClassification, {}, "architectures is 'UltraFastBertForTokenClassification'"),
    ],
)
def test_a_model_without_an_equivalent_is_refused(tmp_path, model_class, options, match):
    source = ours(tmp_path, model_class, **options)
    with pytest.raises(ConversionError, match=match):
        to_original(source, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_only_a_model_of_this_package_is_converted_back(tmp_path):
    config = original.config()
    source = original.write(tmp_path / "source", config, original.state(config))
    with pytest.raises(ConversionError, match="model_type is 'crammedBERT'; it should be 'ultrafastbert'"):
        to_original(source, tmp_path / "back")
