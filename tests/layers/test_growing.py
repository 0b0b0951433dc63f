"""Trees with leaves grow in any model, from the inputs they receive, without a change of what the model computes."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.layers.test_replace import BERT, bert, llama, own
from ultrafastbert import grow_trees, replace_feedforward

TOKENS = 64


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = own()
    replace_feedforward(model, "*.mlp", "1x3x4")
    return model


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, TOKENS // 2, 8, generator=generator) for _ in range(10)]


def test_each_layer_is_split_by_what_it_receives_and_the_output_stays(model, batches):
    before = model(batches[0])
    seen = {}
    for block in model:
        block.mlp.register_forward_pre_hook(lambda layer, inputs: seen.setdefault(layer, []).append(inputs[0]))
    assert grow_trees(model, batches) == ["0.mlp", "1.mlp", "2.mlp"]
    for block in model:
        x = torch.cat(seen[block.mlp][: 64 * 8 // TOKENS])  # each pass starts with the first batches
        _, counts = block.mlp.usage(x)
        assert counts.min() >= 62 and counts.max() <= 66  # up to rounding, 64
    torch.testing.assert_close(model(batches[0]), before)


def test_only_as_many_batches_run_as_are_needed(model, batches):
    calls = []
    grow_trees(model, batches, lambda batch: calls.append(model(batch)), tokens_per_leaf=10)
    assert len(calls) == 3 * 2  # 80 tokens for each of three layers


def test_every_module_keeps_its_mode(model, batches):
    model[1].eval()
    modes = [module.training for module in model.modules()]
    grow_trees(model, batches, lambda batch: [model(batch), modes.append(model[0].training)])
    assert [module.training for module in model.modules()] == modes[: len(list(model.modules()))]
    assert not any(modes[len(list(model.modules())) :])


def test_layers_with_decisions_keep_them(model, batches):
    model[1].mlp.split_by_variance(batches[0])
    nodes = model[1].mlp.node_weight_in.clone()
    assert grow_trees(model, batches) == ["0.mlp", "2.mlp"]
    assert torch.equal(model[1].mlp.node_weight_in, nodes)
    assert grow_trees(model, batches) == []


@pytest.mark.parametrize("size", ["1x3", "1x0x4", "dense-5", "none"])
def test_other_layers_do_not_grow(size, batches):
    model = own()
    replace_feedforward(model, "*.mlp", size)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert grow_trees(model, batches) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_averages_of_the_optimizer_follow_the_first_leaf(model, batches, optimizer_class):
    optimizer = optimizer_class(model.parameters(), lr=0.01)
    for batch in batches[:3]:
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    grow_trees(model, batches, optimizers=[optimizer])
    weight = model[0].mlp.leaf_weight_in
    averages = [v for v in optimizer.state[weight].values() if torch.is_tensor(v) and v.dim()]
    assert len(averages) == {torch.optim.AdamW: 2, torch.optim.SGD: 0, torch.optim.RMSprop: 1}[optimizer_class]
    assert all(average.any() and (average == average[0]).all() for average in averages)


def test_leaves_differ_after_further_training(model, batches):
    grow_trees(model, batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    nodes = model[0].mlp.node_weight_in.clone()
    for batch in batches:
        (model(batch) - batch.sin()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(model[0].mlp.leaf_weight_in.unique(dim=0)) == 8
    assert torch.equal(model[0].mlp.node_weight_in, nodes)


def test_models_of_transformers_grow_from_a_data_loader():
    torch.manual_seed(0)
    ids = torch.randint(30, (40, 16))
    data = DataLoader([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids], batch_size=8)
    for model, pattern in ((bert(), BERT), (llama(), "*.mlp")):
        replaced = replace_feedforward(model, pattern, "1x3x4")
        assert grow_trees(model, data, lambda batch, model=model: model(**batch)) == list(replaced)
        assert all(layer.is_split for layer in replaced.values())


def test_grown_models_load_with_their_decisions(model, batches):
    grow_trees(model, batches)
    other = own()
    replaced = replace_feedforward(other, "*.mlp", "1x3x4")
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(batches[0]), model(batches[0]))
    assert all(layer.is_split for layer in replaced.values())


def test_errors(model, batches):
    with pytest.raises(ValueError, match="batches is a list_iterator, which ends with the first layer"):
        grow_trees(model, iter(batches))
    with pytest.raises(ValueError, match="gave 0.mlp 128 tokens; its 8 leaves need 512. Give more batches, or lower"):
        grow_trees(model, batches[:2])
    with pytest.raises(ValueError, match="gave 0.mlp 0 tokens"):
        grow_trees(model, batches, lambda batch: None)
    with pytest.raises(ValueError, match="tokens_per_leaf is 0; it should be greater than 0"):
        grow_trees(model, batches, tokens_per_leaf=0)
    with pytest.raises(ValueError, match="values that are not finite"):
        grow_trees(model, [torch.full((600, 8), torch.nan)])
    assert model.training and not any(block.mlp.is_split for block in model)
    assert grow_trees(model, batches[:2], tokens_per_leaf=16) == ["0.mlp", "1.mlp", "2.mlp"]


def test_a_layer_that_receives_too_few_tokens_stops_at_its_place(model, batches):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = model[0], model[1]

        def forward(self, x):
            return self.second(self.first(x)[:1, :4])

    with pytest.raises(ValueError, match="gave second.mlp 40 tokens"):
        grow_trees(Half(), batches)
    assert model[0].mlp.is_split and not model[1].mlp.is_split
