"""Models of the BERT family, converted in memory and from directories, compute what transformers computes."""

import pytest
import torch
from transformers import AutoConfig, BertConfig, BertModel, ElectraConfig

from tests.conversion.bert_family import MODELS, assert_same_outputs, batch, make, outputs
from ultrafastbert import optimize_for_inference
from ultrafastbert.conversion.bert import from_bert, load_encoder, make_plan
from ultrafastbert.conversion.files import ConversionError
from ultrafastbert.ops import native


def expected_of(original):
    """The model whose outputs a converted one has: ELECTRA's discriminator becomes an encoder."""
    return original.electra if type(original).__name__ == "ElectraForPreTraining" else original


@pytest.mark.parametrize("family, head", MODELS)
def test_outputs_are_those_of_transformers(family, head):
    original = make(family, head)
    assert_same_outputs(from_bert(original), expected_of(original), head)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_weights_and_hidden_states_are_those_of_transformers(implementation):
    original = make("bert", "Model")
    converted = from_bert(original)
    for model in (original, converted):
        model.set_attn_implementation(implementation)
    options = {"output_hidden_states": True, "output_attentions": implementation == "eager"}
    with torch.no_grad():
        expected, actual = (model(**batch(original), **options) for model in (original, converted))
    for name in ("hidden_states", "attentions"):
        for theirs, ours in zip(expected.get(name) or (), actual.get(name) or (), strict=True):
            torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)  # the sequence without padding


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "camembert"])
def test_positions_of_roberta_ignore_padding_on_the_left(family):
    original = make(family, "Model")
    inputs = {name: tensor.flip(1) for name, tensor in batch(original).items()}
    expected, actual = (outputs(model, inputs)["last_hidden_state"] for model in (original, from_bert(original)))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family, longest", [("bert", 20), ("roberta", 18), ("distilbert", 20), ("electra", 20)])
def test_the_longest_sequence_is_that_of_the_original(family, longest):
    original = make(family, "Model")
    converted = from_bert(original)
    assert converted.config.max_position_embeddings == longest
    inputs = {"input_ids": torch.arange(longest)[None] + 5, "attention_mask": torch.ones(1, longest, dtype=torch.long)}
    expected, actual = (outputs(model, inputs)["last_hidden_state"] for model in (original, converted))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "family, head, options",
    [
        ("bert", "ForMaskedLM", {"tie_word_embeddings": False}),
        ("bert", "ForMaskedLM", {"hidden_act": "relu"}),
        ("bert", "Model", {"type_vocab_size": 1}),
        ("bert", "Model", {"type_vocab_size": 3, "pad_token_id": 7}),
        ("roberta", "Model", {"type_vocab_size": 2, "pad_token_id": 3}),
        ("roberta", "ForSequenceClassification", {"hidden_act": "silu"}),
        ("distilbert", "Model", {"sinusoidal_pos_embds": True, "activation": "relu"}),
        ("electra", "ForMaskedLM", {"embedding_size": 24}),
        ("electra", "ForMultipleChoice", {"summary_activation": ""}),
        ("electra", "ForSequenceClassification", {"num_labels": 7}),
    ],
)
def test_options_are_carried_over(family, head, options):
    original = make(family, head, **options)
    assert_same_outputs(from_bert(original), original, head)


def test_labels_and_dropout_are_carried_over():
    names = {0: "no", 1: "yes", 2: "maybe"}
    labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    labels |= {"problem_type": "multi_label_classification"}
    rates = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "layer_norm_eps": 1e-5}
    config = from_bert(make("bert", "ForSequenceClassification", **labels, **rates)).config
    for name, value in (labels | rates).items():
        assert getattr(config, name) == value
    assert config.num_labels == 3
    assert config.classifier_dropout == 0.2  # that of the hidden states, if the head has none
    assert (
        from_bert(make("bert", "ForSequenceClassification", classifier_dropout=0.4)).config.classifier_dropout == 0.4
    )
    assert from_bert(make("bert", "ForQuestionAnswering")).config.classifier_dropout == 0
    assert from_bert(make("distilbert", "ForQuestionAnswering", qa_dropout=0.6)).config.classifier_dropout == 0.6
    assert from_bert(make("distilbert", "ForTokenClassification", dropout=0.7)).config.classifier_dropout == 0.7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(dtype, tmp_path):
    original = make("roberta", "ForMaskedLM").to(dtype)
    original.save_pretrained(tmp_path)
    converted = load_encoder(tmp_path)
    assert {parameter.dtype for parameter in converted.parameters()} == {dtype}
    assert_same_outputs(converted.float(), original.float())  # nothing was rounded


def test_a_directory_is_loaded_whatever_its_family(tmp_path):
    original = make("bert", "ForMaskedLM")
    original.save_pretrained(tmp_path / "bert")
    converted = load_encoder(tmp_path / "bert")
    assert_same_outputs(converted, original)
    converted.save_pretrained(tmp_path / "ours")
    again = load_encoder(str(tmp_path / "ours"))
    assert type(again) is type(converted)
    assert_same_outputs(again, original)


def test_the_original_does_not_change_with_the_converted_model():
    original = make("roberta", "Model")
    before = outputs(original, batch(original))["last_hidden_state"]
    converted = from_bert(original)
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.zero_()
    torch.testing.assert_close(outputs(original, batch(original))["last_hidden_state"], before, rtol=0, atol=0)


@pytest.mark.skipif(not native.available(), reason="needs a C++ compiler")
@pytest.mark.parametrize("family, head", MODELS)
def test_an_optimized_model_computes_what_the_original_does(family, head):
    original = make(family, head)
    inputs, expected = batch(original, head), outputs(expected_of(original), batch(original, head))
    for dtype, int8, tolerance in (("float32", False, 1e-5), ("bfloat16", False, 0.05), ("float32", True, 0.1)):
        fast = optimize_for_inference(from_bert(original), dtype=dtype, int8=int8, verbose=False)
        assert "padding removed" in " ".join(fast.optimizations)
        for name, actual in outputs(fast, inputs).items():
            error = (actual.float() - expected[name]).norm() / expected[name].norm()
            assert error < tolerance, (name, dtype, int8)


@pytest.mark.parametrize(
    "config, head, problem",
    [
        (BertConfig(position_embedding_type="relative_key"), "BertModel", "position_embedding_type is 'relative_key'"),
        (BertConfig(is_decoder=True), "BertModel", "is_decoder is True"),
        (BertConfig(add_cross_attention=True), "BertModel", "add_cross_attention is True"),
        (BertConfig(hidden_act="cosine"), "BertModel", "hidden_act is 'cosine'; it should be one of"),
        (BertConfig(), "BertLMHeadModel", "architectures is 'BertLMHeadModel'; only BertModel, BertForMaskedLM"),
        (BertConfig(), "RobertaModel", "architectures is 'RobertaModel'"),
        (ElectraConfig(summary_type="mean"), "ElectraForMultipleChoice", "summary_type is 'mean'; only 'first'"),
        (ElectraConfig(hidden_act="relu"), "ElectraForMaskedLM", "hidden_act is 'relu'; only 'gelu'"),
        (AutoConfig.for_model("roberta", hidden_act="relu"), "RobertaForMaskedLM", "hidden_act is 'relu'"),
        (AutoConfig.for_model("albert"), "AlbertModel", "'albert', which has .*layers that share their weights; only"),
        (AutoConfig.for_model("deberta-v2"), "DebertaV2Model", "relative positions"),
        (AutoConfig.for_model("mpnet"), "MPNetModel", "relative positions"),
        (AutoConfig.for_model("t5"), "T5Model", "relative positions and a decoder"),
        (AutoConfig.for_model("modernbert"), "ModernBertModel", "gated feedforward layers"),
        (AutoConfig.for_model("gpt2"), "GPT2Model", "model_type is 'gpt2'; only bert, roberta"),
    ],
)
def test_what_has_no_equivalent_is_refused_by_name(config, head, problem):
    with pytest.raises(ConversionError, match=problem):
        make_plan(config, head)


@pytest.fixture
def checkpoint(tmp_path):
    make("bert", "ForMaskedLM").save_pretrained(tmp_path)
    return tmp_path


def with_config(directory, **options):
    config = BertConfig.from_pretrained(directory)
    config.update(options)
    config.save_pretrained(directory)


def test_an_untrained_head_is_an_error(checkpoint):
    with_config(checkpoint, architectures=["BertForSequenceClassification"])
    with pytest.raises(ConversionError, match="no weights for bert.pooler.dense.bias, .*, classifier.weight"):
        load_encoder(checkpoint)


def test_tensors_without_an_equivalent_are_named(tmp_path, capsys):
    make("bert", "ForPreTraining").save_pretrained(tmp_path)
    load_encoder(tmp_path)
    pooler, sentences = ("bert.pooler.dense.bias, bert.pooler.dense.weight", "cls.seq_relationship.bias, cls.seq_")
    found = capsys.readouterr().err
    assert f"BertForPreTraining without an equivalent here: {pooler}, {sentences}relationship.weight\n" in found
    with_config(tmp_path, architectures=["BertModel"])  # now those of the other head are unexpected
    load_encoder(tmp_path)
    assert "cls.predictions.transform.dense.weight" in capsys.readouterr().err


def test_nothing_is_named_if_all_tensors_are_converted(tmp_path, capsys):
    make("roberta", "ForMaskedLM").save_pretrained(tmp_path)
    capsys.readouterr()
    load_encoder(tmp_path)
    assert capsys.readouterr().err == ""


def test_without_architectures_the_encoder_is_loaded(checkpoint):
    original = BertModel.from_pretrained(checkpoint)
    with_config(checkpoint, architectures=None)
    assert_same_outputs(load_encoder(checkpoint), original)


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"architectures": ["BertModel", "BertForMaskedLM"]}, "config.json: architectures is .* a list of one name"),
        ({"architectures": ["NoSuchModel"]}, "config.json: architectures is 'NoSuchModel'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "config.json: quantization_config is"),
        ({"hidden_size": 48}, "cannot be loaded"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(checkpoint, options, problem):
    with_config(checkpoint, **options)
    with pytest.raises(ConversionError, match=problem):
        load_encoder(checkpoint)


def test_a_damaged_or_missing_file_is_named(checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConversionError, match=f"{checkpoint} cannot be loaded"):
        load_encoder(checkpoint)
    weights.unlink()
    with pytest.raises(ConversionError, match="no file named .*model.safetensors"):
        load_encoder(checkpoint)
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(ConversionError, match="config.json is not JSON"):
        load_encoder(checkpoint)
    with pytest.raises(ConversionError, match="does not exist, and is not the name"):
        load_encoder(checkpoint / "nowhere")


def test_pickles_that_run_code_are_refused(checkpoint):
    class Attack:
        def __reduce__(self):
            return (open, (str(checkpoint / "attacked"), "w"))

    (checkpoint / "model.safetensors").unlink()
    torch.save({"bert.pooler.dense.bias": Attack()}, checkpoint / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="cannot be loaded"):
        load_encoder(checkpoint)
    assert not (checkpoint / "attacked").exists()
