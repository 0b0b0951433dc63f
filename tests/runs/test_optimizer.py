"""Weight decay of parameters."""

import pytest

from ultrafastbert.modeling_ultrafastbert import UltraFastBertForMaskedLM
from ultrafastbert.pretraining.arguments import ModelArguments
from ultrafastbert.runs.optimizer import build_optimizer


@pytest.mark.parametrize("fff", ["2x2", "dense-24"])
def test_norms_biases_and_scales_are_not_decayed(fff):
    arguments = ModelArguments(fff=fff, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = UltraFastBertForMaskedLM(arguments.build_config(50, 16))
    optimizer = build_optimizer(model, lr=1e-3, betas=(0.9, 0.98), eps=1e-12, weight_decay=0.3)
    decayed, rest = optimizer.param_groups
    assert decayed["weight_decay"] == 0.3 and rest["weight_decay"] == 0
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert len(decayed["params"]) + len(rest["params"]) == len(names)
    for name in (names[id(parameter)] for parameter in rest["params"]):
        assert "norm" in name or name.endswith(("bias", "bias_in", "position_scale"))
    for name in (names[id(parameter)] for parameter in decayed["params"]):
        assert "norm" not in name and name.endswith(("weight", "weight_in", "weight_out"))
