"""`torch.compile(fullgraph=True)`: no graph breaks, the same outputs and gradients.

The backend is `aot_eager`, which traces forward and backward as the default one does but generates no code:
what is tested here is the model, not the code generator.
"""

import pytest
import torch

from ultrafastbert import (
    UltraFastBertConfig,
    UltraFastBertForMaskedLM,
    UltraFastBertForQuestionAnswering,
    UltraFastBertForSequenceClassification,
    UltraFastBertForTokenClassification,
    UltraFastBertModel,
)

INPUT_IDS = torch.randint(1, 50, (3, 9), generator=torch.Generator().manual_seed(1))
RIGHT = (torch.arange(9) < torch.tensor([9, 5, 1])[:, None]).long()
LEFT = RIGHT.flip(1)
COLUMNS = torch.tensor([[0, 1], [2, 4], [5, 8]])


def make(model_class, **options):
    torch.manual_seed(0)
    config = UltraFastBertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=20,
        fff_depth=2,
        intermediate_size=24,
        classifier_hidden_size=12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout=0.0,
        **options,
    )
    return model_class(config)


def compiled(model):
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize(
    "model_class, mask, arguments",
    [
        (UltraFastBertModel, None, {}),
        (UltraFastBertModel, RIGHT, {}),
        (UltraFastBertForMaskedLM, None, {"labels": INPUT_IDS}),
        (UltraFastBertForMaskedLM, LEFT, {"labels": INPUT_IDS, "masked_positions": COLUMNS}),
        (UltraFastBertForSequenceClassification, LEFT, {"labels": COLUMNS[:, 0] % 2}),
        (UltraFastBertForTokenClassification, RIGHT, {"labels": INPUT_IDS % 2}),
        (
            UltraFastBertForQuestionAnswering,
            RIGHT,
            {"start_positions": COLUMNS[:, 0], "end_positions": COLUMNS[:, 1]},
        ),
    ],
)
@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_no_graph_breaks(model_class, mask, arguments, positions):
    results = []
    for prepare in (lambda model: model, compiled):
        model = make(model_class, position_embedding=positions)
        output = prepare(model)(INPUT_IDS, attention_mask=mask, **arguments)
        output[0].float().square().mean().backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((output.to_tuple(), grads))
    assert results[1][1]
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("options", [{"feedforward": "dense"}, {"classifier_pooling": "mean"}])
def test_no_graph_breaks_in_inference(options):
    model = make(UltraFastBertForSequenceClassification, **options).eval()
    with torch.inference_mode():
        expected = model(INPUT_IDS, attention_mask=RIGHT).logits
        torch.testing.assert_close(compiled(model)(INPUT_IDS, attention_mask=RIGHT).logits, expected)


def test_hidden_states_compile():
    """After one call with hidden states, in which transformers installs hooks that cannot be traced."""
    model = make(UltraFastBertModel).eval()
    expected = model(INPUT_IDS, output_hidden_states=True).hidden_states
    torch.testing.assert_close(compiled(model)(INPUT_IDS, output_hidden_states=True).hidden_states, expected)


def test_dynamic_lengths_compile_once():
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounter()
    model = make(UltraFastBertForMaskedLM).eval()
    dynamic = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    with torch.no_grad():
        for length in (4, 7, 9):
            input_ids, mask = INPUT_IDS[:, :length].contiguous(), RIGHT[:, :length].contiguous()
            expected = model(input_ids, attention_mask=mask).logits
            torch.testing.assert_close(dynamic(input_ids, attention_mask=mask).logits, expected)
    assert counter.frame_count == 1


def test_gradient_checkpointing_compiles():
    results = []
    for prepare in (lambda model: model, compiled):
        model = make(UltraFastBertForMaskedLM).train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        prepare(model)(INPUT_IDS, labels=INPUT_IDS).loss.backward()
        results.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(results[1], results[0])


def test_a_sequence_that_is_too_long_is_refused():
    with pytest.raises(Exception, match="max_position_embeddings is 20"):
        compiled(make(UltraFastBertModel))(torch.ones(1, 21, dtype=torch.long))
