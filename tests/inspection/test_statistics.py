"""Statistics of trees, against plain loops over the paths of tokens and trees whose leaves are known."""

import math
from collections import Counter

import pytest
import torch

from ultrafastbert import FFF, SoftFFF, UltraFastBertConfig, UltraFastBertModel
from ultrafastbert.inspection.statistics import (
    NEAR_ZERO,
    TreeStatistics,
    _PairCounter,
    decision_entropy,
    leaves_of_tokens,
)
from ultrafastbert.layers.usage import LeafCounter, evenness, tree_layers


def tiny(fff_trees=2, fff_depth=3, seed=0):
    torch.manual_seed(seed)
    config = UltraFastBertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        fff_trees=fff_trees,
        fff_depth=fff_depth,
        max_position_embeddings=12,
        initializer_range=0.3,
    )
    return UltraFastBertModel(config).eval()


def batch(lengths, seed=0):
    ids = torch.randint(5, 30, (len(lengths), 12), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(12) < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


def test_tree_layers_are_those_with_decisions():
    model = torch.nn.Sequential(FFF(4, 2), torch.nn.Linear(4, 4), FFF(4, 0), SoftFFF(4, 2, 4, 1), SoftFFF(4, 2, 4, 0))
    assert tree_layers(model) == [model[0], model[3]]
    with LeafCounter(model) as counter, torch.no_grad():
        model(torch.randn(7, 5, 4))
    assert [counts.sum().item() for counts in counter.counts] == [35, 35]


@pytest.mark.parametrize("trees", [1, 3])
def test_statistics_equal_a_loop_over_real_tokens(trees, monkeypatch):
    monkeypatch.setattr("ultrafastbert.inspection.statistics.NUMBERS", 200)  # so that a batch is processed in pieces
    model = tiny(fff_trees=trees)
    statistics = TreeStatistics(model)
    batches = [batch([12, 7, 1]), batch([3, 9], seed=1)]
    inputs = [[], []]  # of each layer
    for ids, mask in batches:
        statistics.run(ids, mask)
        hooks = [
            layer.register_forward_pre_hook(lambda _, x, index=index: inputs[index].append(x[0]))
            for index, layer in enumerate(statistics.layers)
        ]
        with torch.no_grad():
            model(ids, mask)
        for hook in hooks:
            hook.remove()

    for index, layer in enumerate(statistics.layers):
        leaf_counts, token_counts, visits, entropy, near_zero = (Counter() for _ in range(5))
        for (ids, mask), x in zip(batches, inputs[index], strict=True):
            for row, column in mask.nonzero().tolist():
                token = x[row, column]
                for tree, path in enumerate(layer.route(token).tolist()):
                    leaf_counts[tree, path[-1] - 7] += 1
                    token_counts[tree, path[-1] - 7, ids[row, column].item()] += 1
                    for node in path:
                        visits[tree, node] += 1
                    for node in path[:-1]:
                        z = (layer.weight_in[tree, node] @ token + layer.bias_in[tree, node]).item()
                        p = 1 / (1 + math.exp(-z))
                        entropy[tree, node] -= p * math.log(p) + (1 - p) * math.log(1 - p)
                        near_zero[tree, node] += abs(z) < NEAR_ZERO
        assert sum(leaf_counts.values()) == trees * 32
        for tree in range(trees):
            for leaf in range(8):
                assert statistics.counts[index][tree, leaf] == leaf_counts[tree, leaf]
                tokens, counts = statistics.tokens_at(index, tree, leaf)
                found = dict(zip(tokens.tolist(), counts.tolist(), strict=True))
                assert found == {key[2]: count for key, count in token_counts.items() if key[:2] == (tree, leaf)}
                assert counts.tolist() == sorted(counts.tolist(), reverse=True)
            assert torch.cat(statistics.visits(index), 1)[tree].tolist() == [visits[tree, node] for node in range(15)]
            for node in range(7):
                assert statistics.entropy_sums[index][tree, node].item() == pytest.approx(
                    entropy[tree, node], rel=1e-4, abs=1e-6
                )
                assert statistics.near_zero[index][tree, node] == near_zero[tree, node]


def test_padding_is_not_counted():
    """Texts in a padded batch count like each of them alone."""
    model, (ids, mask) = tiny(), batch([12, 7, 1, 4])
    together, alone = TreeStatistics(model), TreeStatistics(model)
    together.run(ids, mask)
    for row, length in enumerate(mask.sum(1).tolist()):
        alone.run(ids[row : row + 1, :length], mask[row : row + 1, :length])
    assert together.token_counts.sum() == 24 and together.token_counts[0] == 0
    for index in range(2):
        assert torch.equal(together.counts[index], alone.counts[index])
        assert torch.allclose(together.entropy_sums[index], alone.entropy_sums[index], rtol=1e-4)


def test_trees_whose_leaves_are_known():
    """Layers whose biases alone decide, and send every token to the same leaf."""
    model = tiny(fff_trees=1)
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.o_proj.weight.zero_()
            layer.feedforward.weight_out.zero_()
            layer.feedforward.weight_in.zero_()
            layer.feedforward.bias_in.fill_(-20.0)  # certainly to the left
        model.layers[1].feedforward.bias_in[:, 0] = 20.0  # the root to the right
        model.layers[1].feedforward.bias_in[:, 2] = 0.05  # and its right child too, but barely
    ids, mask = batch([12, 5])
    statistics = TreeStatistics(model)
    statistics.run(ids, mask)
    assert statistics.counts[0].tolist() == [[17, 0, 0, 0, 0, 0, 0, 0]]
    assert statistics.counts[1].tolist() == [[0, 0, 0, 0, 0, 0, 17, 0]]
    assert statistics.near_zero[0].sum() == 0 and statistics.near_zero[1].tolist() == [[0, 0, 17, 0, 0, 0, 0]]
    assert statistics.entropy_sums[0].sum() < 1e-5
    assert statistics.entropy_sums[1][0, 2].item() == pytest.approx(17 * math.log(2), rel=1e-3)
    tokens, counts = statistics.tokens_at(1, 0, 6)
    assert Counter(dict(zip(tokens.tolist(), counts.tolist(), strict=True))) == Counter(ids[mask == 1].tolist())


def test_leaves_of_tokens_equal_those_of_route():
    model, (ids, mask) = tiny(), batch([12, 5])
    found = leaves_of_tokens(model, input_ids=ids, attention_mask=mask)
    assert [leaf.shape for leaf in found] == [(2, 12, 2)] * 2
    first = model.layers[0]
    with torch.no_grad():
        x = model(ids, mask, output_hidden_states=True).hidden_states[0][:1]
        x = first.feedforward_norm(x + first.attention(first.attention_norm(x))[0])
    assert torch.equal(found[0][:1], first.feedforward.route(x)[..., -1] - 7)


def test_entropy_of_decisions():
    z = torch.tensor([0.0, 1.0, -1.0, 2.5, 30.0, -200.0, 200.0], dtype=torch.float64)
    p = z.sigmoid()
    by_definition = torch.special.entr(p) + torch.special.entr(1 - p)
    assert torch.allclose(decision_entropy(z), by_definition, atol=1e-12)
    assert decision_entropy(z)[0].item() == pytest.approx(math.log(2))
    assert decision_entropy(torch.tensor([1e4, -1e4])).tolist() == [0, 0]  # and not NaN


def test_evenness():
    assert evenness(torch.tensor([[5, 5, 5, 5]])) == (1, pytest.approx(1))
    assert evenness(torch.tensor([[0, 0, 9, 0]])) == (0.25, 0)
    assert evenness(torch.tensor([[0, 0, 9, 0], [3, 3, 0, 0]])) == (0.375, pytest.approx(0.25))  # means over trees


def test_counting_in_pieces(monkeypatch):
    monkeypatch.setattr(_PairCounter, "WAITING", 50)
    counter, expected = _PairCounter(), Counter()
    generator = torch.Generator().manual_seed(0)
    assert [len(values) for values in counter.between(0, 100)] == [0, 0]
    for size in (7, 60, 0, 33, 40):
        keys = torch.randint(0, 100, (size,), generator=generator)
        counter.add(keys)
        expected.update(keys.tolist())
        found = dict(zip(*(values.tolist() for values in counter.between(20, 80)), strict=True))
        assert found == {key: count for key, count in expected.items() if 20 <= key < 80}
