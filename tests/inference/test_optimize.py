"""An optimised model returns the model's outputs to the stated precision, and refuses what it does not support."""

import copy
import warnings

import pytest
import torch
from transformers import pipeline

import ultrafastbert
from ultrafastbert import (
    UltraFastBertConfig,
    UltraFastBertForMaskedLM,
    UltraFastBertForMultipleChoice,
    UltraFastBertForQuestionAnswering,
    UltraFastBertForSequenceClassification,
    UltraFastBertForTokenClassification,
    UltraFastBertModel,
    optimize_for_inference,
)
from ultrafastbert.layers.hard import HardFFF
from ultrafastbert.ops import native
from ultrafastbert.ops.native import build

needs_native = pytest.mark.skipif(
    build.compiler_version() is None and not native.available(), reason="no C++ compiler"
)
HEADS = [
    UltraFastBertForMaskedLM,
    UltraFastBertForSequenceClassification,
    UltraFastBertForTokenClassification,
    UltraFastBertForQuestionAnswering,
]
ROTARY = {"position_embedding": "rotary", "decoder_bias": True}
LEAVES = {"fff_leaf_size": 6}
BERT = {
    "position_embedding": "learned",
    "type_vocab_size": 2,
    "norm_position": "post",
    "projection_bias": True,
    "feedforward": "dense",
}
MIXED = BERT | {
    "feedforward_sizes": ["dense-32", "1x4x8", "none"],
    "feedforward_skip": True,
    "embedding_size": 24,
    "head_transform": True,
}
ARCHITECTURES = {
    "fff": {"feedforward": "fff"},
    "leaves": LEAVES,
    "dense": {"feedforward": "dense"},
    "none": {"feedforward": "none"},
    "rotary": ROTARY,
    "bert": BERT,
    "mixed": MIXED,
}


def make(model_class=UltraFastBertModel, **options):
    defaults = {
        "vocab_size": 60,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "max_position_embeddings": 40,
        "fff_depth": 5,
        "intermediate_size": 64,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    return split(model_class(UltraFastBertConfig(**(defaults | options))).eval())


def split(model):
    """Gives trees with leaves their decisions and different leaves, and lets biases and skips matter."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "skip" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    for module in model.modules():
        if isinstance(module, HardFFF):
            module.split_by_variance(torch.randn(200, module.input_size))
            torch.nn.init.normal_(module.leaf_weight_in, std=0.2)
            torch.nn.init.normal_(module.leaf_weight_out, std=0.05)
    return model


def batch():
    """Sequences that are full, padded on the right, padded on the left, and with a gap in the mask."""
    input_ids = torch.randint(1, 60, (4, 33), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(4, 33, dtype=torch.long)
    mask[1, 7:] = 0
    mask[2, :30] = 0
    mask[3, 10:20] = 0
    return {"input_ids": input_ids, "attention_mask": mask}


def optimized(model, **options):
    return optimize_for_inference(model, **({"verbose": False} | options))


def error(output, expected):
    """The norm of the difference, relative to the expected norm."""
    return ((output.float() - expected).norm() / expected.norm()).item()


@torch.no_grad()
def hidden(model, **inputs):
    return model(**inputs).last_hidden_state


# the same outputs


@needs_native
@pytest.mark.parametrize("options", ARCHITECTURES.values(), ids=ARCHITECTURES)
@pytest.mark.parametrize(
    "settings, most",
    [
        ({"dtype": "float32", "int8": False}, 1e-5),
        ({"dtype": torch.bfloat16, "int8": False}, 0.04),
        ({"dtype": "float32", "int8": True}, 0.05),
        ({"dtype": "bfloat16", "int8": True}, 0.05),
    ],
)
def test_hidden_states_to_the_precision_of_the_settings(options, settings, most):
    model = make(**options)
    fast, inputs = optimized(model, **settings), batch()
    real = inputs["attention_mask"].bool()
    expected, output = hidden(model, **inputs), hidden(fast, **inputs)
    assert output.dtype is fast.dtype and fast.dtype in (torch.float32, torch.bfloat16)
    assert error(output[real], expected[real]) < most
    assert (output[~real] == 0).all()
    unpadded = {"input_ids": inputs["input_ids"]}
    assert error(hidden(fast, **unpadded), hidden(model, **unpadded)) < most


@needs_native
@pytest.mark.parametrize("head", [*HEADS, UltraFastBertForMultipleChoice])
def test_every_head(head):
    model, inputs = make(head), batch()
    if head is UltraFastBertForMultipleChoice:
        inputs = {name: tensor[None] for name, tensor in inputs.items()}
    fast = optimized(model, dtype="float32", int8=False)
    assert type(fast) is head
    assert fast.config.to_dict() | {"quantization_config": None} == model.config.to_dict() | {
        "quantization_config": None
    }
    with torch.no_grad():
        outputs, expected = fast(**inputs), model(**inputs)
    assert outputs.keys() == expected.keys()
    real = inputs["attention_mask"].bool()
    for name in outputs:
        a, b = outputs[name], expected[name]
        if a.shape[:2] == real.shape:
            a, b = a[real], b[real]
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@needs_native
def test_labels_and_masked_positions():
    model, inputs = make(UltraFastBertForMaskedLM), batch()
    inputs |= {"labels": inputs["input_ids"], "masked_positions": torch.tensor([[0, 3], [1, 2], [31, 30], [5, 25]])}
    fast = optimized(model, dtype="float32", int8=False)
    with torch.no_grad():
        torch.testing.assert_close(fast(**inputs).loss, model(**inputs).loss, rtol=1e-5, atol=1e-5)


@needs_native
@pytest.mark.parametrize("settings", [{"dtype": "bfloat16", "int8": False}, {"dtype": "bfloat16", "int8": True}])
def test_a_sequence_does_not_depend_on_its_batch(settings):
    """Each sequence alone, without its padding, gives the same numbers up to oneDNN's order of summation."""
    fast, inputs = optimized(make(), **settings), batch()
    together = hidden(fast, **inputs)
    for ids, mask, states in zip(inputs["input_ids"], inputs["attention_mask"], together, strict=True):
        real = mask.bool()
        positions = (torch.arange(len(mask)) - mask.argmax()).clamp(min=0)[real]
        alone = hidden(fast, input_ids=ids[real][None], position_ids=positions[None])
        assert error(alone[0], states[real].float()) < 0.01


@needs_native
def test_other_inputs_and_outputs():
    model = make()
    fast, inputs = optimized(model, dtype="float32", int8=False), batch()
    real = inputs["attention_mask"].bool()
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    positions = torch.arange(33).flip(0)[None]
    for asked in (
        {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"].bool()},
        {
            "input_ids": inputs["input_ids"],
            "attention_mask": inputs["attention_mask"].float(),
            "position_ids": positions,
        },
        inputs | {"token_type_ids": torch.ones_like(inputs["input_ids"])},
    ):
        torch.testing.assert_close(hidden(fast, **asked)[real], hidden(model, **asked)[real], rtol=1e-4, atol=1e-4)
    as_tuple = fast(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], hidden(fast, **inputs))


@needs_native
@pytest.mark.parametrize("int8", [False, True])
def test_hidden_states_and_attentions_are_returned_on_request(int8):
    model = make(attn_implementation="eager")
    fast, inputs = optimized(model, dtype="float32", int8=int8), batch()
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        output = fast(**inputs, output_hidden_states=True, output_attentions=True)
        expected = model(**inputs, output_hidden_states=True, output_attentions=True)
        four_dimensional = fast(inputs["input_ids"], attention_mask=real[:, None, None] & real[:, None, :, None])
    assert len(output.hidden_states) == 4 and len(output.attentions) == 3
    for a, b in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert error(a[real], b[real]) < (0.05 if int8 else 1e-5)
    assert output.attentions[0].shape == (4, 3, 33, 33)
    assert four_dimensional.last_hidden_state.shape == (4, 33, 48)


@needs_native
def test_empty_sequences_and_empty_batches():
    fast = optimized(make())
    nothing = hidden(fast, input_ids=torch.ones(2, 5, dtype=torch.long), attention_mask=torch.zeros(2, 5).long())
    assert nothing.shape == (2, 5, 48) and (nothing == 0).all()
    one = torch.tensor([[1, 1, 1], [0, 0, 0]])
    assert hidden(fast, input_ids=torch.ones(2, 3, dtype=torch.long), attention_mask=one)[0].abs().min() > 0
    assert hidden(fast, input_ids=torch.ones(0, 5, dtype=torch.long)).shape == (0, 5, 48)


@needs_native
def test_nan_in_one_sequence_does_not_affect_the_others():
    model = make()
    fast = optimized(model, dtype="float32", int8=True)
    embeds = torch.randn(3, 8, 48, generator=torch.Generator().manual_seed(0))
    expected = hidden(fast, inputs_embeds=embeds)
    embeds[1, 3] = float("nan")
    output = hidden(fast, inputs_embeds=embeds)
    assert output[1].isnan().all()
    torch.testing.assert_close(output[[0, 2]], expected[[0, 2]])


@needs_native
def test_the_original_model_does_not_change():
    model = make(UltraFastBertForMaskedLM)
    before = copy.deepcopy(model.state_dict())
    optimized(model, dtype="bfloat16", int8=True)
    assert {name: t.dtype for name, t in model.state_dict().items()} == {name: t.dtype for name, t in before.items()}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    model(**batch()).logits.sum().backward()


@needs_native
def test_pipeline(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "the", "cat", "sat", "on", "a", "mat"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    texts = ["the cat sat on a mat", "the cat", "a"]
    model = make(UltraFastBertForSequenceClassification)
    outputs = [
        pipeline("text-classification", model=m, tokenizer=tokenizer, batch_size=3)(texts)
        for m in (model, optimized(model, dtype="float32", int8=False))
    ]
    for expected, output in zip(*outputs, strict=True):
        assert output["score"] == pytest.approx(expected["score"], abs=1e-4)


WRONG_INPUTS = [
    ("attention_mask", torch.ones(3, 5)),
    ("attention_mask", torch.ones(3, 9)),
    ("attention_mask", torch.ones(3, 11)),
    ("attention_mask", torch.ones(1, 10)),
    ("attention_mask", torch.ones(3, 1)),
    ("attention_mask", torch.ones(10)),
    ("attention_mask", torch.ones(3, 10, 10)),
    ("attention_mask", torch.ones(2, 1, 10, 10, dtype=torch.bool)),
    ("attention_mask", torch.ones(3, 1, 10, 11, dtype=torch.bool)),
    ("position_ids", torch.arange(9)[None]),
    ("position_ids", torch.arange(10)),
    ("position_ids", torch.arange(20).view(2, 10)),
    ("position_ids", torch.arange(10.0)[None]),
    ("input_ids", torch.ones(30, dtype=torch.long)),
    ("input_ids", torch.ones(3, 10)),
    ("input_ids", torch.ones(3, 10, 1, dtype=torch.long)),
    ("input_ids", torch.ones(3, 0, dtype=torch.long)),
    ("input_ids", torch.full((3, 10), 60)),
    ("input_ids", torch.full((3, 10), -1)),
    ("inputs_embeds", torch.ones(3, 10)),
    ("inputs_embeds", torch.ones(3, 10, 47)),
    ("inputs_embeds", torch.ones(3, 10, 48, dtype=torch.long)),
]


@needs_native
@pytest.mark.parametrize("options", [{}, LEAVES, ROTARY], ids=["fff", "leaves", "rotary"])
def test_plain_and_optimised_models_refuse_the_same_inputs_with_the_same_words(options):
    model = make(UltraFastBertForMaskedLM, **options)
    models = [model, optimized(model, dtype="float32", int8=False), optimized(model, dtype="bfloat16", int8=False)]
    for name, wrong in WRONG_INPUTS:
        inputs = {name: wrong} if name.startswith("input") else {"input_ids": torch.ones(3, 10).long(), name: wrong}
        messages = set()
        for each in models:
            with pytest.raises(ValueError, match=f"{name} .*should") as raised:
                each(**inputs)
            messages.add(str(raised.value))
        assert len(messages) == 1, (name, tuple(wrong.shape), messages)


@needs_native
@pytest.mark.parametrize("shape", [(1, 1, 10, 10), (3, 1, 10, 10), (3, 3, 10, 10), (3, 1, 1, 10)])
@pytest.mark.parametrize("as_float", [False, True])
def test_four_dimensional_masks_are_accepted_by_both(shape, as_float):
    model = make()
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.8
    mask[..., 0] = True
    if as_float:
        mask = torch.zeros(shape).masked_fill(~mask, float("-inf"))
    inputs = {"input_ids": batch()["input_ids"][:3, :10], "attention_mask": mask}
    fast = optimized(model, dtype="float32", int8=False)
    assert error(hidden(fast, **inputs), hidden(model, **inputs)) < 1e-5
    assert hidden(optimized(model, dtype="bfloat16", int8=False), **inputs).isfinite().all()


@needs_native
@pytest.mark.parametrize("options", [{}, ROTARY], ids=["sinusoidal", "rotary"])
def test_embeddings_of_any_floating_dtype_are_accepted_by_both(options):
    model = make(**options)
    embeds = model.get_input_embeddings()(batch()["input_ids"]).detach()
    expected = hidden(model, inputs_embeds=embeds)
    for each in (model, optimized(model, dtype="float32", int8=False), optimized(model, dtype="bfloat16", int8=False)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            output = hidden(each, inputs_embeds=embeds.to(dtype))
            assert output.dtype is each.dtype and error(output, expected) < 0.05


@needs_native
@pytest.mark.parametrize("options", ARCHITECTURES.values(), ids=ARCHITECTURES)
@pytest.mark.parametrize("head", [*HEADS, UltraFastBertForMultipleChoice])
def test_a_batch_of_no_sequences_gives_no_outputs(head, options):
    shape = (0, 2, 10) if head is UltraFastBertForMultipleChoice else (0, 10)
    model = make(head, **options)
    for each in (model, optimized(model, dtype="float32", int8=False)):
        for mask in (None, torch.ones(shape)):
            with torch.no_grad():
                outputs = each(torch.ones(shape, dtype=torch.long), attention_mask=mask)
            assert all(output.shape[0] == 0 for output in outputs.to_tuple())


# messages and errors


@needs_native
def test_it_prints_its_changes(capsys):
    fast = optimize_for_inference(make(), dtype="float32", int8=True)
    said = capsys.readouterr().err
    assert all(done in said for done in fast.optimizations)
    assert "float32" in said and "6 linear layers" in said and "int8" in said
    optimize_for_inference(make(feedforward="dense"), dtype="bfloat16", int8=False)
    said = capsys.readouterr().err
    assert "bfloat16" in said and "int8" not in said
    assert ("12 linear layers packed" in said) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    optimize_for_inference(make(), verbose=False)
    assert capsys.readouterr().err == ""


def test_without_native_operators_only_the_dtype_changes(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    model, inputs = make(), batch()
    fast = optimized(model, dtype="bfloat16", int8=True)
    assert "no native operators" in fast.optimizations[-1]
    real = inputs["attention_mask"].bool()
    assert error(hidden(fast, **inputs)[real], hidden(model, **inputs)[real]) < 0.05


@pytest.mark.parametrize(
    "options, problem, match",
    [
        ({"dtype": "float16"}, ValueError, "dtype is 'float16'; it should be one of auto, float32, bfloat16"),
        ({"dtype": torch.float64}, ValueError, "dtype is torch.float64"),
        ({"int8": "yes"}, ValueError, "int8 is 'yes'"),
        ({"tolerance": -0.1}, ValueError, "tolerance is -0.1; it should be a finite number, at least 0"),
        ({"tolerance": float("nan")}, ValueError, "tolerance is nan"),
        ({"shapes": []}, ValueError, r"shapes is \[\]; it should be pairs of positive integers"),
        ({"shapes": [(1, 16), (0, 8)]}, ValueError, "shapes is"),
        ({"shapes": [16]}, ValueError, "shapes is"),
    ],
)
def test_wrong_settings_are_refused(options, problem, match):
    with pytest.raises(problem, match=match):
        optimized(make(), **options)


def test_wrong_models_are_refused():
    with pytest.raises(TypeError, match="model is a Linear"):
        optimized(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="model is on meta"):
        optimized(make().to("meta"))
    with pytest.raises(ValueError, match="already optimised"):
        optimized(optimized(make()))


@needs_native
def test_gradients_are_refused():
    fast = optimized(make(), dtype="float32")
    embeds = torch.randn(1, 4, 48, requires_grad=True)
    with pytest.raises(RuntimeError, match="no gradients"):
        fast(inputs_embeds=embeds)
    assert not fast(torch.ones(1, 4, dtype=torch.long)).last_hidden_state.requires_grad


@needs_native
def test_torch_compile_works():
    fast, inputs = optimized(make()), batch()
    expected = hidden(fast, **inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(hidden(torch.compile(fast, backend="eager"), **inputs), expected)


def test_public_name():
    assert ultrafastbert.optimize_for_inference is optimize_for_inference
