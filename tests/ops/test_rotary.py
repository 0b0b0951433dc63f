"""Rotary positions by the native operator: the values and gradients of PyTorch's operators."""

import pytest
import torch

import ultrafastbert.modeling_ultrafastbert as modeling
from ultrafastbert import UltraFastBertConfig, UltraFastBertForMaskedLM
from ultrafastbert.ops import native
from ultrafastbert.ops.rotary import rotate_queries_and_keys, rotates


@pytest.fixture(autouse=True)
def operator():
    if not native.available():
        pytest.skip("needs a C++ compiler")


def by_pytorch(qkv, cosine, sine):
    queries, keys, values = qkv.unbind(2)
    cosine, sine = cosine.unsqueeze(2), sine.unsqueeze(2)
    return torch.stack((modeling.rotate(queries, cosine, sine), modeling.rotate(keys, cosine, sine), values), dim=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "batch, tables, seq, heads, head_dim", [(2, 1, 5, 3, 16), (3, 3, 7, 1, 6), (1, 1, 1, 2, 2), (0, 1, 4, 2, 6)]
)
def test_agrees_with_pytorch(batch, tables, seq, heads, head_dim, dtype):
    generator = torch.Generator().manual_seed(seq)
    shape = (batch, seq, 3, heads, head_dim)
    qkv, upstream = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    positions = torch.randint(1000, (tables, seq), generator=generator)
    angles = modeling.rotary_positions(positions, head_dim, 10_000.0)
    before = qkv.clone()
    results = []
    for function in (rotate_queries_and_keys, by_pytorch):
        given = qkv.clone().requires_grad_() if function is by_pytorch else qkv.requires_grad_()
        output = function(given, *angles)
        results.append((output.detach(), torch.autograd.grad(output, given, upstream)[0]))
    assert torch.equal(qkv, before)
    tolerance = 4 * torch.finfo(dtype).eps
    for result, expected in zip(*results, strict=True):
        assert result.dtype == dtype
        torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


def test_other_dtypes_and_compilers_use_pytorch():
    assert rotates(torch.zeros(1, 1, 3, 1, 2)) and not rotates(torch.zeros(1, 1, 3, 1, 2, dtype=torch.float64))
    assert not rotates(torch.zeros(1, 1, 3, 1, 2, device="meta"))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_learns_the_same(monkeypatch, implementation, bf16):
    """Loss and gradients, with padding on the left and positions of the caller's own."""
    torch.manual_seed(0)
    config = UltraFastBertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        fff_depth=2,
        position_embedding="rotary",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = UltraFastBertForMaskedLM(config).train()
    model.set_attn_implementation(implementation)
    inputs = torch.randint(1, 60, (3, 9))
    mask = torch.ones_like(inputs)
    mask[1, :4] = 0
    positions = torch.arange(9).expand(3, 9) + torch.tensor([[0], [5], [70]])

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(inputs, attention_mask=mask, position_ids=positions, labels=inputs).loss
        return loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))

    fast = step()
    monkeypatch.setattr(modeling, "rotates", lambda qkv: False)
    for result, expected in zip(fast, step(), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-6)
