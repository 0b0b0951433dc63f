"""Arithmetic is counted as PyTorch counts it, and peaks are those of dense products."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ultrafastbert import UltraFastBertConfig, UltraFastBertForMaskedLM
from ultrafastbert.pretraining.flops import training_flops
from ultrafastbert.utils.hardware import PEAKS


@pytest.mark.parametrize("feedforward", ["dense", "none"])
@pytest.mark.parametrize("layers, neurons, length", [(1, 24, 5), (3, 40, 16)])
def test_the_arithmetic_is_what_pytorch_counts(layers, neurons, length, feedforward):
    config = UltraFastBertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=length,
        feedforward=feedforward,
        intermediate_size=neurons,
    )
    config._attn_implementation = "eager"  # whose products the counter knows
    model = UltraFastBertForMaskedLM(config)
    tokens = torch.randint(1, 50, (3, length))
    with FlopCounterMode(display=False) as counter:
        model(tokens, labels=tokens, masked_positions=torch.tensor([[0, 4]] * 3)).loss.backward()
    assert counter.get_total_flops() == training_flops(config, sequences=3, sequence_length=length, masked=2)


def test_peaks_are_of_dense_products():
    for peak in PEAKS.values():
        assert peak.flops[torch.float32] < peak.flops[torch.bfloat16] == peak.flops[torch.float16] < 3e15
        assert 1e11 < peak.bandwidth < 1e13
