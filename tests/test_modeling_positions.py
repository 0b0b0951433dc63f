"""Rotary positions: the formula, relative positions only, longer sequences, and what a model learns with them."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from ultrafastbert import UltraFastBertConfig, UltraFastBertForMaskedLM, UltraFastBertModel
from ultrafastbert.modeling_ultrafastbert import rotary_positions, rotate


def config(**options):
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "fff_depth": 2}
    return UltraFastBertConfig(**(sizes | {"max_position_embeddings": 16, "position_embedding": "rotary"} | options))


def make(model_class=UltraFastBertModel, **options):
    torch.manual_seed(0)
    return model_class(config(initializer_range=0.3, **options)).eval()


def test_pairs_turn_by_their_angles():
    """As products of complex numbers with exp(i m theta^(-2 k / d)): arXiv 2104.09864, equation 34."""
    torch.manual_seed(0)
    positions, width, theta = torch.tensor([0, 1, 7, 1000]), 10, 10000.0
    x = torch.randn(4, width)
    turned = rotate(x, *rotary_positions(positions, width, theta))
    numbers = torch.complex(x[:, :5].double(), x[:, 5:].double())
    angles = positions[:, None].double() * theta ** (-2 * torch.arange(5, dtype=torch.float64) / width)
    expected = numbers * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(turned.double(), torch.cat([expected.real, expected.imag], dim=1), atol=2e-4, rtol=1e-4)


def test_only_differences_of_positions_matter():
    model, tokens = make(), torch.randint(1, 40, (2, 9))
    positions = torch.arange(9)[None]
    with torch.no_grad():
        here, there = (model(tokens, position_ids=positions + shift).last_hidden_state for shift in (0, 100))
        reversed_order = model(tokens, position_ids=8 - positions).last_hidden_state
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)
    assert (here - reversed_order).abs().max() > 0.01


@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
def test_attention_functions_agree_with_sdpa(attention):
    tokens, mask = torch.randint(1, 40, (2, 9)), (torch.arange(9) < torch.tensor([9, 5])[:, None]).long()
    outputs = []
    for implementation in ("sdpa", attention):
        torch.manual_seed(0)
        sizes = config(initializer_range=0.3, hidden_size=32)  # flex_attention needs heads of width 16
        model = UltraFastBertModel._from_config(sizes, attn_implementation=implementation).eval()
        with torch.no_grad():
            outputs.append(model(tokens, mask).last_hidden_state[mask.bool()])
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-4, rtol=1e-4)


def test_order_matters():
    """Without positions, an encoder would give a token the same vector wherever it stands."""
    model, tokens = make(), torch.randint(1, 40, (1, 9))
    permutation = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ordered, permuted = model(tokens).last_hidden_state, model(tokens[:, permutation]).last_hidden_state
    assert (ordered[:, permutation] - permuted).abs().max() > 0.01


def test_longer_sequences_are_accepted():
    with torch.no_grad():
        assert make()(torch.randint(1, 40, (1, 40))).last_hidden_state.shape == (1, 40, 16)
    with pytest.raises(ValueError, match="40 tokens long"):
        make(position_embedding="sinusoidal")(torch.randint(1, 40, (1, 40)))


def test_a_head_of_odd_width_is_refused():
    with pytest.raises(StrictDataclassError, match=r"hidden_size is 18; it should be a multiple of 2"):
        config(hidden_size=18, num_attention_heads=2)


def test_an_earlier_configuration_is_sinusoidal():
    old = {name: value for name, value in config(position_embedding="sinusoidal").to_dict().items()}
    for name in ("position_embedding", "rope_theta", "decoder_bias"):
        del old[name]
    loaded = UltraFastBertConfig.from_dict(old)
    assert (loaded.position_embedding, loaded.decoder_bias) == ("sinusoidal", False)


def test_the_decoder_bias_is_added_to_the_logits():
    model, tokens = make(UltraFastBertForMaskedLM, decoder_bias=True), torch.randint(1, 40, (1, 5))
    assert not model.decoder.bias.any()
    with torch.no_grad():
        before = model(tokens).logits
        model.decoder.bias.copy_(torch.arange(40.0))
        torch.testing.assert_close(model(tokens).logits, before + torch.arange(40.0))


@pytest.mark.slow
def test_loss_at_twice_the_training_length():
    """A model learns to copy the token three places to the left in sequences of 16.

    In sequences of 32, most pairs of positions are farther apart than any in training. The loss rises, and stays far
    below that of guessing.
    """
    torch.manual_seed(0)
    model = UltraFastBertForMaskedLM(config(hidden_size=32, initializer_range=0.15, hidden_dropout_prob=0.0)).train()
    model.config.attention_probs_dropout_prob = 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def loss(length: int) -> torch.Tensor:
        tokens = torch.randint(1, 40, (64, length))
        labels = torch.full_like(tokens, -100)
        labels[:, 3:] = tokens[:, :-3]
        return model(tokens, labels=labels).loss

    for _ in range(400):
        optimizer.zero_grad()
        loss(16).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        short, long = loss(16).item(), loss(32).item()
    assert short < 0.1 and long < math.log(39) - 1, (short, long)
