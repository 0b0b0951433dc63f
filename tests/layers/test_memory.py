"""Models that cannot fit are refused before memory is taken, and the bound is one."""

import json
import resource

import pytest
import torch
from transformers import AutoModelForMaskedLM

from ultrafastbert import UltraFastBertConfig, UltraFastBertForMaskedLM
from ultrafastbert.layers import memory
from ultrafastbert.layers.memory import check_memory, parameters_by_part

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 50, "fff_depth": 3}
HUGE = {
    "hidden_size": {"hidden_size": 2 * 10**7},
    "max_position_embeddings": {"max_position_embeddings": 10**12},
    "vocab_size": {"vocab_size": 10**12},
    "num_hidden_layers": {"num_hidden_layers": 10_000, "hidden_size": 16_384},
    "feedforward": {"fff_depth": 30, "hidden_size": 1024},
    "dense": {"feedforward": "dense", "intermediate_size": 10**12},
}


@pytest.mark.parametrize("name", HUGE)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_huge_model_is_refused_before_memory_is_taken(name, device):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    part = "feedforward" if name == "dense" else name
    with torch.device(device), pytest.raises(ValueError, match=rf"needs at least .* GB.* GB are for .*{part}"):
        UltraFastBertForMaskedLM(UltraFastBertConfig(**(SMALL | HUGE[name])))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_configuration_file_with_a_huge_number_is_refused(tmp_path):
    UltraFastBertForMaskedLM(UltraFastBertConfig(**SMALL)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 10**12}))
    with pytest.raises(ValueError, match="GB are for positions"):
        AutoModelForMaskedLM.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**6}))
    with pytest.raises(Exception, match="num_hidden_layers is 1000000; it should be from 0 to 10000"):
        AutoModelForMaskedLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "options",
    [{}, {"fff_trees": 3}, {"fff_leaf_size": 5}, {"feedforward": "dense"}, {"feedforward": "none"}]
    + [{"position_embedding": "rotary"}],
)
def test_the_sum_is_a_lower_bound_and_close(options):
    config = UltraFastBertConfig(**(SMALL | {"hidden_size": 64} | options))
    model = UltraFastBertForMaskedLM(config)
    numbers = model.num_parameters() + sum(buffer.numel() for buffer in model.buffers())
    assert 0.8 * numbers < sum(parameters_by_part(config).values()) <= numbers


def test_the_limit_is_the_memory_of_the_machine(monkeypatch):
    config = UltraFastBertConfig(**SMALL)
    check_memory(config)
    monkeypatch.setattr(memory, "memory_size", lambda: 10_000)
    with pytest.raises(ValueError, match="this machine has 0.0 GB of memory"):
        check_memory(config)
