"""The models: outputs, initialisation, saving and loading, and that padding does not change real tokens."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrafastbert import (
    UltraFastBertConfig,
    UltraFastBertForMaskedLM,
    UltraFastBertForMultipleChoice,
    UltraFastBertForQuestionAnswering,
    UltraFastBertForSequenceClassification,
    UltraFastBertForTokenClassification,
    UltraFastBertModel,
)
from ultrafastbert.layers.hard import HardFFF
from ultrafastbert.modeling_ultrafastbert import sinusoids

HEADS = [
    UltraFastBertForMaskedLM,
    UltraFastBertForSequenceClassification,
    UltraFastBertForTokenClassification,
    UltraFastBertForQuestionAnswering,
]
ROTARY = {"position_embedding": "rotary", "decoder_bias": True}
LEAVES = {"fff_trees": 1, "fff_leaf_size": 3}
BERT = {
    "position_embedding": "learned",
    "type_vocab_size": 2,
    "norm_position": "post",
    "projection_bias": True,
    "hidden_act": "relu",
    "head_transform": True,
    "decoder_bias": True,
    "feedforward": "dense",
}
MIXED = BERT | {
    "embedding_size": 8,
    "num_hidden_layers": 4,
    "feedforward_sizes": ["2x2", "1x2x3", "none", "dense-12"],
    "feedforward_skip": True,
}
ARCHITECTURES = [
    {"feedforward": "fff"},
    LEAVES,
    {"feedforward": "dense"},
    {"feedforward": "none"},
    ROTARY,
    BERT,
    MIXED,
]


def tiny(**options):
    """A configuration whose models take milliseconds; a large initial range makes every part matter."""
    defaults = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 20,
        "fff_depth": 2,
        "fff_trees": 2,
        "intermediate_size": 24,
        "classifier_hidden_size": 12,
        "initializer_range": 0.3,
    }
    return UltraFastBertConfig(**(defaults | options))


def make(model_class, seed=0, attention="sdpa", **options):
    torch.manual_seed(seed)
    model = model_class._from_config(tiny(**options), attn_implementation=attention).eval()
    return split(model)


def split(model):
    """Gives trees with leaves their decisions and different leaves, and lets biases and skips matter."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "skip" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    for module in model.modules():
        if isinstance(module, HardFFF):
            module.split_by_variance(torch.randn(100, module.input_size))
            torch.nn.init.normal_(module.leaf_weight_in)
            torch.nn.init.normal_(module.leaf_weight_out, std=0.3)
    return model


def tokens(batch=3, seq=9, seed=1):
    return torch.randint(1, 50, (batch, seq), generator=torch.Generator().manual_seed(seed))


def right_padded():
    """The mask of three sequences of 9, 5 and 1 real tokens."""
    return (torch.arange(9) < torch.tensor([9, 5, 1])[:, None]).long()


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# What it computes


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("options", ARCHITECTURES)
def test_hidden_states(options, attention):
    model = make(UltraFastBertModel, attention=attention, **options)
    output = model(tokens(), output_hidden_states=True)
    assert output.last_hidden_state.shape == (3, 9, 16)
    assert len(output.hidden_states) == 1 + model.config.num_hidden_layers
    assert output.hidden_states[-1] is output.last_hidden_state
    torch.testing.assert_close(output.hidden_states[0], model.embeddings(tokens(), None, torch.arange(9)[None]))
    assert output.attentions is None


def test_attentions():
    model = make(UltraFastBertForMaskedLM, attention="eager")
    mask = right_padded()
    attentions = model(tokens(), attention_mask=mask, output_attentions=True).attentions
    assert len(attentions) == 2
    for weights in attentions:
        assert weights.shape == (3, 2, 9, 9)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 9))
        assert (weights * (1 - mask)[:, None, None, :]).abs().max() == 0


def test_pre_norm_layer_by_hand():
    """One layer with one head, written out."""
    model = make(UltraFastBertModel, num_hidden_layers=1, num_attention_heads=1, feedforward="dense")
    layer, x = model.layers[0], model.embeddings(tokens(), None, torch.arange(9)[None])
    q, k, v = (layer.attention_norm(x) @ layer.attention.qkv_proj.weight.T).chunk(3, dim=-1)
    attended = (q @ k.mT / math.sqrt(16)).softmax(-1) @ v
    x = x + attended @ layer.attention.o_proj.weight.T
    x = x + layer.feedforward(layer.feedforward_norm(x))
    torch.testing.assert_close(model(tokens()).last_hidden_state, model.final_norm(x))


def test_post_norm_layer_by_hand():
    """One layer with one head and biases, with a tree and a skip in place of the dense layer, written out."""
    sizes = {"feedforward_sizes": ["2x2"], "feedforward_skip": True}
    model = make(UltraFastBertModel, **(BERT | sizes), num_hidden_layers=1, num_attention_heads=1)
    layer, x = model.layers[0], model.embeddings(tokens(), None, torch.arange(9)[None])
    qkv, out = layer.attention.qkv_proj, layer.attention.o_proj
    q, k, v = (x @ qkv.weight.T + qkv.bias).chunk(3, dim=-1)
    attended = (q @ k.mT / math.sqrt(16)).softmax(-1) @ v
    x = layer.attention_norm(x + attended @ out.weight.T + out.bias)
    x = layer.feedforward_norm(x + layer.feedforward(x) + layer.skip.factor * x + layer.skip.bias)
    torch.testing.assert_close(model(tokens()).last_hidden_state, x)
    assert model.final_norm is None


def test_embeddings_by_hand():
    """Learned positions and token types, narrower than the encoder."""
    model = make(UltraFastBertModel, **MIXED)
    embeddings, types = model.embeddings, (tokens() > 20).long()
    weights = [part.weight for part in (embeddings.position_embeddings, embeddings.type_embeddings)]
    x = embeddings.word_embeddings.weight[tokens()] + weights[0][:9] + weights[1][types]
    norm, projection = embeddings.norm, embeddings.projection
    expected = F.layer_norm(x, (8,), norm.weight, norm.bias, norm.eps) @ projection.weight.T + projection.bias
    torch.testing.assert_close(embeddings(tokens(), None, torch.arange(9)[None], types), expected)
    output = model(tokens(), token_type_ids=types, output_hidden_states=True)
    torch.testing.assert_close(output.hidden_states[0], expected)
    zeros = model(tokens(), token_type_ids=torch.zeros(1, 9, dtype=torch.long))
    assert torch.equal(zeros[0], model(tokens())[0]) and not torch.equal(output[0], zeros[0])


def test_head_transform_by_hand():
    model = make(UltraFastBertForMaskedLM, **MIXED)
    dense, norm = model.transform.dense, model.transform.norm
    x = (model.model(tokens())[0] @ dense.weight.T + dense.bias).relu()
    x = F.layer_norm(x, (8,), norm.weight, norm.bias, norm.eps)
    decoder = model.model.embeddings.word_embeddings.weight
    torch.testing.assert_close(model(tokens()).logits, x @ decoder.T + model.decoder.bias)


def test_token_types_of_multiple_choice():
    model = make(UltraFastBertForMultipleChoice, **BERT)
    choices, types = tokens(batch=6).view(3, 2, 9), (tokens(batch=6, seed=2) > 20).long()
    together = model(choices, token_type_ids=types.view(3, 2, 9)).logits
    apart = model(choices.view(6, 1, 9), token_type_ids=types.view(6, 1, 9)).logits
    torch.testing.assert_close(together, apart.view(3, 2))
    assert not torch.allclose(together, model(choices).logits)


def test_sizes_of_layers():
    layers = make(UltraFastBertModel, **MIXED).layers
    assert [str(size) for size in tiny(**MIXED).sizes_by_layer] == MIXED["feedforward_sizes"]
    assert [type(layer.feedforward).__name__ for layer in layers] == [
        "FFF",
        "HardFFF",
        "NoneType",
        "UltraFastBertDense",
    ]
    assert layers[2].has_feedforward  # the skip and its norm
    assert not make(UltraFastBertModel, feedforward_sizes=["none", "1x2"]).layers[0].has_feedforward


def test_a_layer_without_feedforward_is_attention_alone():
    model = make(UltraFastBertModel, num_hidden_layers=1, num_attention_heads=1, feedforward="none")
    layer, x = model.layers[0], model.embeddings(tokens(), None, torch.arange(9)[None])
    attended, _ = layer.attention(layer.attention_norm(x))
    torch.testing.assert_close(model(tokens()).last_hidden_state, model.final_norm(x + attended))
    assert not [name for name in model.state_dict() if "feedforward" in name]


def test_no_biases_in_attention_and_dense_projections():
    names = [name for name, _ in make(UltraFastBertForMaskedLM, feedforward="dense").named_parameters()]
    assert [name for name in names if name.endswith("bias") and "norm" not in name] == []


@pytest.mark.parametrize("options", ARCHITECTURES)
def test_sdpa_equals_eager_with_padding(options):
    mask = right_padded()
    outputs, grads = [], []
    for attention in ("sdpa", "eager"):
        model = make(UltraFastBertForMaskedLM, attention=attention, **options).double()
        logits = model(tokens(), attention_mask=mask).logits[mask.bool()]
        logits.square().sum().backward()
        outputs.append(logits)
        grads.append(gradients(model))
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(grads[0], grads[1])


def test_inputs_embeds_equal_their_tokens():
    model = make(UltraFastBertModel)
    embeds = model.get_input_embeddings()(tokens())
    torch.testing.assert_close(model(inputs_embeds=embeds)[0], model(tokens())[0])


@pytest.mark.parametrize("arguments", [{}, {"input_ids": tokens(), "inputs_embeds": torch.zeros(3, 9, 16)}])
def test_both_or_no_inputs_are_refused(arguments):
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        make(UltraFastBertModel)(**arguments)


def test_token_type_ids_have_no_effect():
    """Tokenizers send them by default; there are no segment embeddings."""
    model = make(UltraFastBertModel)
    torch.testing.assert_close(model(tokens(), token_type_ids=torch.ones(3, 9).long())[0], model(tokens())[0])


@pytest.mark.parametrize("model_class", [UltraFastBertModel, *HEADS])
def test_return_dict_false(model_class):
    model = make(model_class)
    as_dict = model(tokens())
    as_tuple = model(tokens(), return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == len(as_dict.to_tuple())
    torch.testing.assert_close(as_tuple[0], as_dict[0])


def test_dropout_is_off_in_eval_and_on_in_training():
    model = make(UltraFastBertModel)
    torch.testing.assert_close(model(tokens())[0], model(tokens())[0])
    model.train()
    assert not torch.allclose(model(tokens())[0], model(tokens())[0])


# Positions and padding


def test_sinusoids_are_the_paper_s():
    table = sinusoids(20, 6)
    for position in range(20):
        for pair in range(3):
            angle = position / 10000 ** (2 * pair / 6)
            assert table[position, 2 * pair] == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[position, 2 * pair + 1] == pytest.approx(math.cos(angle), abs=1e-5)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    padding=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=4, max_size=4),
    attention=st.sampled_from(["sdpa", "eager"]),
    options=st.sampled_from(ARCHITECTURES),
    mask_dtype=st.sampled_from([torch.long, torch.bool, torch.float32]),
)
def test_padding_does_not_change_real_tokens(lengths, padding, attention, options, mask_dtype):
    """Each sequence alone, and all in one batch, padded on the left and on the right by any amount."""
    # In float64, so that rounding does not change the decision of a tree.
    model = make(UltraFastBertModel, attention=attention, max_position_embeddings=40, **options).double()
    sequences = [tokens(1, length, seed=length)[0] for length in lengths]
    left = [before for before, _ in padding[: len(sequences)]]
    seq = max(len(ids) + sum(pad) for ids, pad in zip(sequences, padding, strict=False))
    input_ids, mask = torch.zeros(len(sequences), seq, dtype=torch.long), torch.zeros(len(sequences), seq)
    for i, ids in enumerate(sequences):
        input_ids[i, left[i] : left[i] + len(ids)] = ids
        mask[i, left[i] : left[i] + len(ids)] = 1
    with torch.no_grad():
        batch = model(input_ids, attention_mask=mask.to(mask_dtype)).last_hidden_state
        for i, ids in enumerate(sequences):
            alone = model(ids[None]).last_hidden_state[0]
            torch.testing.assert_close(batch[i, left[i] : left[i] + len(ids)], alone)


def test_a_padding_token_s_identity_does_not_matter():
    model, mask = make(UltraFastBertModel), right_padded()
    other = torch.where(mask.bool(), tokens(), tokens(seed=2))
    real = mask.bool()
    torch.testing.assert_close(
        model(tokens(), attention_mask=mask)[0][real], model(other, attention_mask=mask)[0][real]
    )


def test_a_gap_in_the_mask_does_not_shift_positions():
    model, mask = make(UltraFastBertModel), torch.ones(3, 9, dtype=torch.long)
    mask[0, :2] = 0
    mask[1, 3:5] = 0
    expected = torch.arange(9).repeat(3, 1)
    expected[0] = torch.tensor([0, 0, 0, 1, 2, 3, 4, 5, 6])
    torch.testing.assert_close(
        model(tokens(), attention_mask=mask)[0],
        model(tokens(), attention_mask=mask, position_ids=expected)[0],
    )


def test_a_4d_mask_is_passed_to_the_attention():
    model, mask = make(UltraFastBertModel), right_padded()
    full = mask[:, None, None, :].bool().expand(3, 1, 9, 9)
    real = mask.bool()
    torch.testing.assert_close(
        model(tokens(), attention_mask=full)[0][real], model(tokens(), attention_mask=mask)[0][real]
    )


def test_explicit_positions_are_used():
    model = make(UltraFastBertModel)
    position_ids = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10, 11]])
    padded = F.pad(tokens(), (3, 0))
    mask = F.pad(torch.ones(3, 9), (3, 0))
    moved = model(tokens(), position_ids=position_ids)[0]
    torch.testing.assert_close(
        moved, model(padded, attention_mask=mask, position_ids=torch.arange(12)[None])[0][:, 3:]
    )
    assert not torch.allclose(moved, model(tokens())[0])


def test_a_sequence_that_is_too_long_is_refused():
    model = make(UltraFastBertForMaskedLM)
    model(tokens(1, 20))
    with pytest.raises(ValueError, match="21 tokens long; max_position_embeddings is 20"):
        model(tokens(1, 21))


@pytest.mark.parametrize("position_ids", [[[0, 20]], [[-1, 0]]])
def test_positions_out_of_range_are_refused(position_ids):
    with pytest.raises(ValueError, match=r"position_ids are in \[.*\]; they should be in \[0, 19\]"):
        make(UltraFastBertModel)(tokens(1, 2), position_ids=torch.tensor(position_ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("model_class", HEADS)
def test_sequences_of_padding_give_no_nan(model_class, pooling, attention, dtype):
    model = make(model_class, attention=attention, classifier_pooling=pooling).to(dtype)
    mask = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [0] * 9, [1, 1, 1, 1, 1, 0, 0, 0, 0]])
    output = model(tokens(), attention_mask=mask)
    loss = sum(value.float().square().sum() for value in output.to_tuple())
    loss.backward()
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


# The masked-LM head


def masked_batch():
    """Labels at three positions of every sequence, -100 elsewhere."""
    positions = torch.tensor([[0, 3, 4], [1, 2, 8], [5, 6, 7]])
    labels = torch.full((3, 9), -100).scatter(1, positions, tokens().gather(1, positions))
    return positions, labels


def test_loss_of_the_masked_lm():
    model, (_, labels) = make(UltraFastBertForMaskedLM), masked_batch()
    output = model(tokens(), labels=labels)
    assert output.logits.shape == (3, 9, 50)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits.flatten(0, 1), labels.flatten()))


def test_masked_positions_give_the_same_loss_and_gradients():
    positions, labels = masked_batch()
    whole, sparse = make(UltraFastBertForMaskedLM), make(UltraFastBertForMaskedLM)
    full = whole(tokens(), labels=labels)
    some = sparse(tokens(), labels=labels, masked_positions=positions)
    assert some.logits.shape == (3, 3, 50)
    torch.testing.assert_close(some.logits, full.logits.gather(1, positions[..., None].expand(-1, -1, 50)))
    torch.testing.assert_close(some.loss, full.loss)
    full.loss.backward()
    some.loss.backward()
    torch.testing.assert_close(gradients(sparse), gradients(whole))


def test_masked_positions_read_only_their_labels():
    positions, _ = masked_batch()
    model = make(UltraFastBertForMaskedLM)
    full = model(tokens(), labels=tokens(), masked_positions=positions)
    torch.testing.assert_close(full.loss, model(tokens(), labels=masked_batch()[1]).loss)
    assert model(tokens(), masked_positions=positions).loss is None


@pytest.mark.parametrize("shape", [(3,), (1, 3), (3, 3, 1)])
def test_masked_positions_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"masked_positions has shape .* should be \(3, k\)"):
        make(UltraFastBertForMaskedLM)(tokens(), masked_positions=torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("model_class", [UltraFastBertForMaskedLM, UltraFastBertForTokenClassification])
def test_losses_of_micro_batches_add_up(model_class):
    """With `num_items_in_batch`, which Trainer passes, however the labels are distributed."""
    model = make(model_class)
    labels = torch.randint(0, 2, (3, 9)).masked_fill(right_padded() == 0, -100)
    count = (labels != -100).sum()
    parts = [model(tokens()[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=count).loss for i in range(3)]
    torch.testing.assert_close(sum(parts), model(tokens(), labels=labels).loss)


@pytest.mark.parametrize("model_class", HEADS)
def test_losses_are_in_float32(model_class):
    model = make(model_class).bfloat16()
    if model_class is UltraFastBertForQuestionAnswering:
        labels = {"start_positions": torch.tensor([0, 1, 2]), "end_positions": torch.tensor([3, 4, 5])}
    elif model_class is UltraFastBertForSequenceClassification:
        labels = {"labels": torch.tensor([0, 1, 1])}
    else:
        labels = {"labels": tokens() % 2}
    output = model(tokens(), **labels)
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    assert output.to_tuple()[1].dtype == torch.bfloat16


# The other heads


@pytest.mark.parametrize(
    "num_labels, labels, problem_type, loss",
    [
        (3, torch.tensor([0, 2, 1]), "single_label_classification", F.cross_entropy),
        (1, torch.tensor([0.5, -1.0, 2.0]), "regression", lambda x, y: F.mse_loss(x[:, 0], y)),
        (2, torch.rand(3, 2).round(), "multi_label_classification", F.binary_cross_entropy_with_logits),
    ],
)
def test_problem_types_of_sequence_classification(num_labels, labels, problem_type, loss):
    model = make(UltraFastBertForSequenceClassification, num_labels=num_labels)
    output = model(tokens(), labels=labels)
    assert output.logits.shape == (3, num_labels)
    assert model.config.problem_type == problem_type
    torch.testing.assert_close(output.loss, loss(output.logits, labels))


def test_regression_of_several_numbers():
    model = make(UltraFastBertForSequenceClassification, num_labels=2, problem_type="regression")
    labels = torch.randn(3, 2)
    output = model(tokens(), labels=labels)
    torch.testing.assert_close(output.loss, F.mse_loss(output.logits, labels))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pooling_reads_real_tokens_only(pooling):
    model = make(UltraFastBertForSequenceClassification, classifier_pooling=pooling).double()
    alone = model(tokens(3, 5)).logits
    for pad in ((0, 4), (4, 0), (2, 2)):
        input_ids, mask = F.pad(tokens(3, 5), pad), F.pad(torch.ones(3, 5), pad)
        torch.testing.assert_close(model(input_ids, attention_mask=mask).logits, alone)
    hidden = model.model(tokens(3, 5)).last_hidden_state
    pooled = hidden[:, 0] if pooling == "cls" else hidden.mean(dim=1)
    by_hand = model.classifier(torch.tanh(model.pooler.dense(pooled)))
    torch.testing.assert_close(alone, by_hand)


def test_pooling_refuses_masks_of_other_shapes():
    mask = torch.ones(3, 1, 9, 9, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(3, 1, 9, 9\).*\(3, 9\)"):
        make(UltraFastBertForSequenceClassification)(tokens(), attention_mask=mask)


def test_question_answering():
    model = make(UltraFastBertForQuestionAnswering)
    start, end = torch.tensor([0, 3, 100]), torch.tensor([2, 8, 100])  # the third has no answer in its text
    output = model(tokens(), start_positions=start, end_positions=end)
    assert output.start_logits.shape == output.end_logits.shape == (3, 9)
    by_hand = F.cross_entropy(output.start_logits[:2], start[:2]) + F.cross_entropy(output.end_logits[:2], end[:2])
    torch.testing.assert_close(output.loss, by_hand / 2)
    assert model(tokens(), start_positions=start).loss is None


def test_multiple_choice_scores_each_choice_alone():
    model = make(UltraFastBertForMultipleChoice).double()
    input_ids, mask = tokens(8, 9).view(4, 2, 9), torch.ones(4, 2, 9)
    mask[1, 1, 5:] = 0
    output = model(input_ids, attention_mask=mask, labels=torch.tensor([0, 1, 1, 0]))
    assert output.logits.shape == (4, 2)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits.float(), torch.tensor([0, 1, 1, 0])))
    alone = model(input_ids[1:2, 1:2, :5]).logits
    torch.testing.assert_close(output.logits[1:2, 1:2], alone)
    embeds = model.get_input_embeddings()(input_ids)
    torch.testing.assert_close(model(inputs_embeds=embeds, attention_mask=mask).logits, output.logits)


# Initialisation


def test_initialisation():
    torch.manual_seed(0)
    model = UltraFastBertForSequenceClassification(
        tiny(hidden_size=64, vocab_size=1000, fff_depth=4, initializer_range=0.05)
    )
    embedding = model.model.embeddings.word_embeddings.weight
    assert embedding[0].abs().max() == 0  # padding
    assert embedding[1:].std().item() == pytest.approx(0.05, rel=0.05)
    assert model.model.layers[0].attention.qkv_proj.weight.std().item() == pytest.approx(0.05, rel=0.05)
    assert model.pooler.dense.weight.std().item() == pytest.approx(0.05, rel=0.1)
    assert model.classifier.bias.abs().max() == 0
    assert model.model.embeddings.position_scale.item() == pytest.approx(64**-0.5)
    assert model.model.final_norm.weight.unique().tolist() == [1]
    trees = model.model.layers[0].feedforward
    assert trees.weight_in.std().item() == pytest.approx(64**-0.5, rel=0.1)
    assert trees.weight_out.std().item() == pytest.approx(0.02, rel=0.1)
    assert trees.bias_in.abs().max() == 0


def test_the_seed_determines_the_model():
    first, second, other = (make(UltraFastBertForMaskedLM, seed=seed).state_dict() for seed in (3, 3, 4))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not torch.equal(
        first["model.layers.0.feedforward.weight_in"], other["model.layers.0.feedforward.weight_in"]
    )


@pytest.mark.parametrize("feedforward", ["fff", "dense"])
def test_outputs_of_layers_can_start_at_zero(feedforward, tmp_path):
    model = UltraFastBertForMaskedLM(tiny(feedforward=feedforward, zero_init_outputs=True))
    for layer in model.model.layers:
        outputs = [layer.attention.o_proj.weight]
        outputs += [layer.feedforward.down_proj.weight] if feedforward == "dense" else []
        for weight in outputs:
            assert not weight.any()
            torch.nn.init.normal_(weight)
        assert layer.attention.qkv_proj.weight.all()
    model.save_pretrained(tmp_path)  # trained weights are loaded, not reset
    loaded = UltraFastBertForMaskedLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("options", ARCHITECTURES)
def test_initialisation_from_the_meta_device(options):
    with torch.device("meta"):
        model = UltraFastBertForMaskedLM(tiny(**options))
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(math.nan)
    model.init_weights()
    model.tie_weights()
    assert model.eval()(tokens()).logits.isfinite().all()
    if options.get("position_embedding", "sinusoidal") == "sinusoidal":
        torch.testing.assert_close(model.model.embeddings.positions, sinusoids(20, 16))


# Saving and loading


@pytest.mark.parametrize("model_class", [UltraFastBertModel, *HEADS, UltraFastBertForMultipleChoice])
@pytest.mark.parametrize("options", ARCHITECTURES)
def test_save_and_load(tmp_path, model_class, options):
    model = make(model_class, **options)
    model.save_pretrained(tmp_path)
    loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(dict(loaded.named_buffers()), dict(model.named_buffers()), rtol=0, atol=0)
    input_ids = tokens().view(1, 3, 9) if model_class is UltraFastBertForMultipleChoice else tokens()
    torch.testing.assert_close(loaded.eval()(input_ids)[0], model(input_ids)[0])


def test_sharded_save(tmp_path):
    model = make(UltraFastBertForMaskedLM, vocab_size=2000, hidden_size=64, fff_depth=5)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    loaded = UltraFastBertForMaskedLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_classifier_starts_from_a_masked_lm(tmp_path):
    """The encoder is loaded, the new head is initialised."""
    model = make(UltraFastBertForMaskedLM)
    model.save_pretrained(tmp_path)
    classifier, report = UltraFastBertForSequenceClassification.from_pretrained(
        tmp_path, num_labels=4, output_loading_info=True
    )
    assert set(report["missing_keys"]) == {
        "pooler.dense.weight",
        "pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
    torch.testing.assert_close(classifier.model.state_dict(), model.model.state_dict(), rtol=0, atol=0)
    assert classifier.classifier.weight.std() > 0 and classifier.classifier.bias.abs().max() == 0


def test_an_encoder_is_loaded_from_a_masked_lm_and_the_reverse(tmp_path):
    model = make(UltraFastBertForMaskedLM)
    model.save_pretrained(tmp_path / "masked-lm")
    encoder = UltraFastBertModel.from_pretrained(tmp_path / "masked-lm")
    torch.testing.assert_close(encoder.state_dict(), model.model.state_dict(), rtol=0, atol=0)
    encoder.save_pretrained(tmp_path / "encoder")
    again = UltraFastBertForMaskedLM.from_pretrained(tmp_path / "encoder")
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("options", ARCHITECTURES)
def test_loading_in_half_precision(tmp_path, options):
    model = make(UltraFastBertForMaskedLM, **options)
    model.save_pretrained(tmp_path)
    half = UltraFastBertForMaskedLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert {tensor.dtype for tensor in (*half.parameters(), *half.buffers())} == {torch.bfloat16}
    if options.get("position_embedding", "sinusoidal") == "sinusoidal":
        positions = sinusoids(20, 16).bfloat16()
        torch.testing.assert_close(half.model.embeddings.positions, positions, rtol=0, atol=0)
    logits = half(tokens(), attention_mask=right_padded()).logits
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()


def test_the_tied_weight_is_saved_once(tmp_path):
    from safetensors import safe_open

    make(UltraFastBertForMaskedLM).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert [name for name in file.keys() if "decoder" in name or "word_embeddings" in name] == [  # noqa: SIM118
            "model.embeddings.word_embeddings.weight"
        ]


def test_resizing_keeps_the_tie(tmp_path):
    model = make(UltraFastBertForMaskedLM)
    before = model(tokens()).logits
    model.resize_token_embeddings(61)
    assert model.config.vocab_size == 61
    assert model.decoder.weight is model.model.embeddings.word_embeddings.weight
    after = model(tokens(), labels=tokens())
    assert after.logits.shape == (3, 9, 61) and after.loss.isfinite()
    torch.testing.assert_close(after.logits[..., :50], before)
    model.save_pretrained(tmp_path)
    loaded = UltraFastBertForMaskedLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(tokens()).logits, after.logits)


def test_untied_embeddings(tmp_path):
    model = make(UltraFastBertForMaskedLM, tie_word_embeddings=False)
    assert model.decoder.weight is not model.model.embeddings.word_embeddings.weight
    assert not torch.equal(model.decoder.weight, model.model.embeddings.word_embeddings.weight)
    model.save_pretrained(tmp_path)
    loaded = UltraFastBertForMaskedLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    model.resize_token_embeddings(61)
    assert model.decoder.weight.shape == model.model.embeddings.word_embeddings.weight.shape == (61, 16)
    assert model.decoder.weight is not model.model.embeddings.word_embeddings.weight


# Training


@pytest.mark.parametrize("options", ARCHITECTURES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(options, reentrant):
    grads = []
    for checkpointing in (False, True):
        model = make(UltraFastBertForMaskedLM, **options).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        torch.manual_seed(5)  # dropout
        model(tokens(), attention_mask=right_padded(), labels=tokens()).loss.backward()
        grads.append(gradients(model))
    torch.testing.assert_close(grads[1], grads[0])


def test_every_parameter_gets_a_gradient():
    model = make(UltraFastBertForMaskedLM, feedforward="dense")
    model(tokens(), labels=tokens()).loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


# Wrong labels


@pytest.mark.parametrize(
    "model_class, labels",
    [
        (UltraFastBertForMaskedLM, {"labels": torch.zeros(9, 3).long()}),
        (UltraFastBertForMaskedLM, {"labels": torch.zeros(4, 9).long(), "masked_positions": torch.ones(3, 2).long()}),
        (UltraFastBertForTokenClassification, {"labels": torch.zeros(27).long()}),
        (UltraFastBertForSequenceClassification, {"labels": torch.zeros(1).long()}),
        (UltraFastBertForSequenceClassification, {"labels": torch.zeros(3, 3).long()}),
        (UltraFastBertForQuestionAnswering, {"start_positions": torch.zeros(1).long()}),
        (UltraFastBertForMultipleChoice, {"labels": torch.zeros(3).long()}),
    ],
)
def test_labels_of_another_shape_are_refused(model_class, labels):
    """Losses flatten labels, so that others of the same number would be compared with the wrong logits."""
    inputs = tokens()[None] if model_class is UltraFastBertForMultipleChoice else tokens()
    with pytest.raises(ValueError, match=r"(labels|start_positions) has shape .*; it should be \("):
        make(model_class)(inputs, **labels)


def test_labels_of_regression_are_not_broadcast():
    one, three = (
        make(UltraFastBertForSequenceClassification, num_labels=n, problem_type="regression") for n in (1, 3)
    )
    assert one(tokens(), labels=torch.zeros(3, 1)).loss.isfinite()
    for model, labels in ((one, torch.zeros(1)), (three, torch.zeros(3)), (three, torch.zeros(3, 1))):
        with pytest.raises(ValueError, match="labels has shape"):
            model(tokens(), labels=labels)


def test_masked_positions_out_of_range_are_refused():
    for position in (-1, 9):
        with pytest.raises(ValueError, match=r"masked_positions has values .* in \[0, 8\]"):
            make(UltraFastBertForMaskedLM)(tokens(), masked_positions=torch.full((3, 1), position))


def test_choices_and_their_masks_have_the_same_shape():
    with pytest.raises(ValueError, match=r"attention_mask has shape \(3, 9\); it should be \(batch, choices, seq\)"):
        make(UltraFastBertForMultipleChoice)(tokens()[None], attention_mask=torch.ones(3, 9))
