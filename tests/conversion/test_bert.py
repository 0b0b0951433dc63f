"""Models of the BERT family, converted in memory and from directories, compute what transformers computes."""

import pytest
import torch
import transformers
from transformers import AutoModel

from ultrafastbert.conversion.bert import from_bert, load_encoder
from ultrafastbert.conversion.families import FAMILIES
from ultrafastbert.conversion.files import ConversionError

TINY = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "num_labels": 2,
}
DISTILBERT = {
    "vocab_size": 50,
    "dim": 24,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 40,
    "max_position_embeddings": 20,
}
OPTIONS = {
    "roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "xlm-roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "camembert": {"pad_token_id": 1, "type_vocab_size": 1},
    "electra": {"embedding_size": 16},
}
MODELS = [(family, head) for family, content in FAMILIES.items() for head in content.heads]


def make(family, head, **options):
    """A model of transformers in which every tensor matters, biases and norms included."""
    torch.manual_seed(0)
    sizes = DISTILBERT if family == "distilbert" else TINY
    config = transformers.AutoConfig.for_model(family, **(sizes | OPTIONS.get(family, {}) | options))
    model = getattr(transformers, FAMILIES[family].classes + head)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter == 1))
    return model


def batch(model, head="Model", seed=0):
    """Three sequences, padded on the right, in two segments if the model has types."""
    torch.manual_seed(seed)
    tokens = torch.randint(5, 50, (3, 14))
    mask = (torch.arange(14) < torch.tensor([14, 9, 3])[:, None]).long()
    inputs = {"input_ids": torch.where(mask.bool(), tokens, model.config.pad_token_id), "attention_mask": mask}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = (torch.arange(14) > 5).long().expand(3, -1) * mask
    if head == "ForMultipleChoice":
        inputs = {name: torch.stack((tensor, tensor.flip(0)), dim=1) for name, tensor in inputs.items()}
    return inputs


@torch.no_grad()
def outputs(model, inputs):
    """The outputs of real tokens, by name."""
    real, found = inputs["attention_mask"].bool(), {}
    given = model(**inputs)
    if "prediction_logits" in given:  # of BertForPreTraining
        given["logits"] = given["prediction_logits"]
    for name in ("last_hidden_state", "logits", "start_logits", "end_logits"):
        output = given.get(name)
        if output is not None:
            found[name] = output[real] if output.shape[: real.dim()] == real.shape else output
    return found


def assert_same_outputs(converted, original, head="Model"):
    inputs = batch(original, head)
    expected, actual = outputs(original, inputs), outputs(converted, inputs)
    for name in actual:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-5, atol=1e-5)
    assert actual


@pytest.mark.parametrize("family, head", MODELS)
def test_outputs_are_those_of_transformers(family, head):
    original = make(family, head)
    if (family, head) == ("electra", "ForPreTraining"):
        assert_same_outputs(from_bert(original), original.electra)
    else:
        assert_same_outputs(from_bert(original), original, head)


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


def test_an_untrained_head_is_an_error(tmp_path):
    make("bert", "Model").save_pretrained(tmp_path)
    config = AutoModel.from_pretrained(tmp_path).config
    config.architectures = ["BertForSequenceClassification"]
    config.save_pretrained(tmp_path)
    with pytest.raises(ConversionError, match="no weights for classifier.bias, classifier.weight"):
        load_encoder(tmp_path)
