"""Tiny models of the BERT family as transformers makes them, with random weights; their inputs and outputs."""

import torch
import transformers

from ultrafastbert.conversion.families import FAMILIES

TINY = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
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
    """Three sequences, padded on the right, in two segments if the model has types; each twice for choices."""
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


def write(directory, family, head, dtype=torch.float32, **options):
    """Writes a model and a tokenizer of its family, whose tokens are letters and special tokens."""
    model = make(family, head, **options)
    model.to(dtype).save_pretrained(directory)
    letters = "etaoinshrdlucmfwypvg"
    if family in ("bert", "distilbert", "electra"):
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
        tokenizer = transformers.BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})
    elif family == "roberta":
        tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "\u0120", *letters, "th", "in"]
        vocabulary = {token: i for i, token in enumerate(tokens)}
        tokenizer = transformers.RobertaTokenizer(vocab=vocabulary, merges=[("t", "h"), ("i", "n")])
    else:
        tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "\u2581", *letters, "th", "in"]
        tokenizer = transformers.XLMRobertaTokenizer(vocab=[(token, -float(i)) for i, token in enumerate(tokens)])
    tokenizer.save_pretrained(directory)
    return model
