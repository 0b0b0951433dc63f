"""Regions against the paths in layers; edits of one leaf against everything that must not change."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrafastbert import FFF, UltraFastBertConfig, UltraFastBertForMaskedLM, UltraFastBertForSequenceClassification
from ultrafastbert.inspection import LeafEdit, half_spaces, in_region, leaves
from ultrafastbert.inspection.regions import decision_logits
from ultrafastbert.layers.soft import SoftFFF

LAYERS = {
    "tree": lambda depth: FFF(4, depth),
    "trees": lambda depth: FFF(4, depth, trees=3),
    "tree without biases": lambda depth: FFF(4, depth, bias=False),
    "soft": lambda depth: SoftFFF(4, 3, 5, depth),
    "soft, large nodes": lambda depth: SoftFFF(4, 3, 5, depth, node_size=2),
}
PLANE = [name for name in LAYERS if name != "soft, large nodes"]


def make(kind, depth=3, seed=0):
    torch.manual_seed(seed)
    layer = LAYERS[kind](depth).eval()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "bias" in name:
                parameter.normal_()
    return layer


def inputs(count=200, seed=1):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


# regions


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("depth", [0, 3])
def test_every_input_is_in_one_region_of_each_tree(kind, depth):
    layer, x = make(kind, depth), inputs().view(10, 20, 4)
    leaf = leaves(layer, x)
    assert leaf.shape == (10, 20, layer.trees)
    assert torch.equal(leaf, layer.route(x)[..., -1] - (2**depth - 1))
    for tree in range(layer.trees):
        members = torch.stack([in_region(layer, x, index, tree) for index in range(2**depth)])
        assert (members.sum(0) == 1).all()
        assert torch.equal(members.int().argmax(0), leaf[..., tree])


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(PLANE), depth=st.integers(0, 4), seed=st.integers(0, 2**20))
def test_half_spaces_contain_exactly_the_inputs_of_their_region(kind, depth, seed):
    layer, generator = make(kind, depth), torch.Generator().manual_seed(seed)

    def whole_numbers(*shape):  # small ones, whose sums are exact: many inputs lie on a boundary
        return torch.randint(-2, 3, shape, generator=generator).float()

    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(whole_numbers(*parameter.shape))
    x = whole_numbers(60, 4)
    for tree in range(layer.trees):
        for leaf in range(2**depth):
            region = half_spaces(layer, leaf, tree)
            assert len(region.node) == depth
            assert torch.equal(region.contains(x), in_region(layer, x, leaf, tree))


def test_half_spaces_are_the_decisions_on_the_path_to_the_leaf():
    layer = make("trees")
    region = half_spaces(layer, leaf=5, tree=2)  # 5 is 101 in binary: right, left, right
    assert region.right.tolist() == [True, False, True]
    assert region.node.tolist() == [0, 2, 5]
    assert torch.equal(region.weight, layer.weight_in[2, [0, 2, 5]])
    assert torch.equal(region.bias, layer.bias_in[2, [0, 2, 5]])


@pytest.mark.parametrize("kind", LAYERS)
def test_logits_on_a_path_decide_its_direction(kind):
    layer, x = make(kind), inputs()
    path = layer.route(x)
    logits = decision_logits(layer, x, path)
    assert logits.shape == (len(x), layer.trees, 3)
    assert torch.equal(path[..., 1:], 2 * path[..., :-1] + 1 + (logits > 0).long())


@pytest.mark.parametrize("kind", LAYERS)
def test_logits_of_half_precision_are_computed_in_float32(kind):
    layer, x = make(kind).bfloat16(), inputs().bfloat16()
    path = layer.route(x)
    logits, exact = decision_logits(layer, x, path), decision_logits(layer.double(), x.double(), path)
    assert logits.dtype == torch.float32
    if not isinstance(layer, SoftFFF):  # its product with all nodes is rounded like its input
        assert torch.allclose(logits.double(), exact, atol=1e-5)


def test_regions_that_do_not_exist():
    layer = make("trees")
    with pytest.raises(ValueError, match="leaf is 8; it should be from 0 to 7"):
        in_region(layer, inputs(), 8)
    with pytest.raises(ValueError, match="leaf is -1; it should be from 0 to 7"):
        LeafEdit(layer, -1)
    with pytest.raises(ValueError, match="tree is 3; it should be from 0 to 2"):
        half_spaces(layer, 0, tree=3)
    with pytest.raises(ValueError, match="node_size 2; only nodes of a single neuron"):
        half_spaces(make("soft, large nodes"), 0)


# edits


@pytest.mark.parametrize("kind", LAYERS)
def test_an_edit_changes_only_its_region(kind):
    layer, x = make(kind), inputs()
    tree = layer.trees - 1
    leaf = int(leaves(layer, x)[0, tree])
    inside, before = in_region(layer, x, leaf, tree), layer(x).detach()
    with LeafEdit(layer, leaf, tree) as edit:
        for values in edit.parameters.values():
            values.add_(torch.ones_like(values))
        change = (layer(x).detach() - before).abs().amax(1)
        effect = edit.effect(x)
    assert effect["inside"].inputs == inside.sum() and effect["outside"].inputs == (~inside).sum()
    assert effect["outside"].changed == effect["outside"].largest == effect["outside"].mean == 0
    assert effect["inside"].changed == inside.sum() > 0
    assert effect["inside"].largest == pytest.approx(change[inside].max().item())
    assert effect["inside"].mean == pytest.approx(change[inside].mean().item())


def test_an_edit_of_a_leaf_without_inputs_has_no_effect():
    layer, x = make("tree"), inputs(2)
    free = next(leaf for leaf in range(8) if not in_region(layer, x, leaf).any())
    with LeafEdit(layer, free) as edit:
        edit.parameters["weight_out"].fill_(3)
        effect = edit.effect(x)
    assert effect["inside"].inputs == effect["inside"].largest == effect["outside"].changed == 0


@pytest.mark.parametrize("kind", LAYERS)
def test_an_edit_is_undone_bit_for_bit(kind):
    layer = make(kind)
    before = {name: values.clone() for name, values in layer.state_dict().items()}

    def is_as_before():
        return all(torch.equal(values, before[name]) for name, values in layer.state_dict().items())

    with pytest.raises(KeyboardInterrupt), LeafEdit(layer, 3) as edit:
        for values in edit.parameters.values():
            values.fill_(torch.nan)
        assert not is_as_before()
        with edit.undone():
            assert is_as_before()
        assert not is_as_before()
        raise KeyboardInterrupt
    assert is_as_before()


def test_an_edit_that_is_kept_stays():
    layer = make("soft")
    with LeafEdit(layer, 3) as edit:
        edit.parameters["leaf_bias_out"].fill_(7)
        edit.keep()
        edit.parameters["leaf_bias_out"].fill_(8)
    assert (layer.leaf_bias_out[3] == 7).all() and (layer.leaf_bias_out[:3] != 7).all()


@pytest.mark.parametrize("kind", LAYERS)
def test_retraining_changes_one_leaf_and_lowers_its_loss(kind):
    layer, x = make(kind), inputs()
    leaf = int(leaves(layer, x)[0, 0])
    mine = x[in_region(layer, x, leaf)]
    target = layer(mine).detach() + 0.3
    before = {name: values.clone() for name, values in layer.state_dict().items()}
    with LeafEdit(layer, leaf) as edit:
        losses = edit.retrain(lambda: (layer(mine) - target).square().mean(), steps=40, lr=0.03)
        edited = edit.parameters
        for name, values in layer.state_dict().items():
            where = (values != before[name]).sum()
            assert where == ((edited[name] != before[name][edit._index]).sum() if name in edited else 0)
        assert edit.effect(x)["outside"].changed == 0
        edit.keep()
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is None for parameter in layer.parameters())  # no gradients remain


def test_effects_are_those_of_inference():
    layer = make("soft").train()
    with pytest.raises(ValueError, match=r"layer is in training mode; call layer.eval\(\) first"):
        LeafEdit(layer, 0).effect(inputs())


# edits in a model


def tiny(model_class=UltraFastBertForMaskedLM, **options):
    torch.manual_seed(0)
    config = UltraFastBertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        fff_depth=3,
        max_position_embeddings=12,
        initializer_range=0.3,
        **options,
    )
    return model_class(config).eval()


def texts():
    """Three texts of 9, 12 and 5 tokens, the last of other tokens than the first two."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, 20, (3, 12), generator=generator)
    ids[2] = torch.randint(20, 30, (12,), generator=generator)
    mask = (torch.arange(12) < torch.tensor([[9], [12], [5]])).long()
    return ids * mask, mask


@pytest.mark.parametrize("index", [0, 1])
def test_in_an_encoder_other_tokens_of_a_text_see_an_edit_and_other_texts_do_not(index):
    model, (ids, mask) = tiny(), texts()
    layer, seen = model.model.layers[index].feedforward, []
    with layer.register_forward_pre_hook(lambda _, x: seen.append(x[0])), torch.no_grad():
        before = model(ids, mask).logits
    taken = leaves(layer, seen[0])[..., 0]
    counts = [[((taken[row] == leaf) & (mask[row] == 1)).sum() for row in range(3)] for leaf in range(8)]
    leaf = next(leaf for leaf in range(8) if counts[leaf][0] and not counts[leaf][2])
    with LeafEdit(layer, leaf) as edit:
        edit.parameters["weight_out"].add_(1.0)
        effect = edit.effect_in_model(model, ids, attention_mask=mask)
        with torch.no_grad():
            change = (model(ids, mask).logits - before).abs().amax(-1)
    affected = [row for row in range(3) if counts[leaf][row]]
    assert effect["inside"].inputs == sum(counts[leaf])
    assert effect["beside"].inputs == mask[affected].sum() - sum(counts[leaf])
    assert effect["outside"].inputs == mask.sum() - mask[affected].sum() > 0
    assert effect["inside"].changed == effect["inside"].inputs
    assert effect["outside"].changed == 0
    # attention in the layers after this one spreads the change; after the last layer there is none
    assert (effect["beside"].changed > 0) == (index == 0)
    inside = (taken == leaf) & (mask == 1)
    assert effect["inside"].largest == pytest.approx(change[inside].max().item())


def test_models_whose_effect_cannot_be_measured():
    model, (ids, mask) = tiny(), texts()
    edit = LeafEdit(model.model.layers[0].feedforward, 0)
    with pytest.raises(ValueError, match="does not contain the layer of this edit"):
        edit.effect_in_model(tiny(), ids, attention_mask=mask)
    with pytest.raises(ValueError, match="model is in training mode"):
        edit.effect_in_model(model.train(), ids, attention_mask=mask)
    classifier = tiny(UltraFastBertForSequenceClassification)
    edit = LeafEdit(classifier.model.layers[0].feedforward, 0)
    with pytest.raises(ValueError, match=r"outputs of shape \(3, 2\); they should be \(texts, tokens, ...\)"):
        edit.effect_in_model(classifier, ids, attention_mask=mask)


# the example in docs/regions.md


def test_the_documented_example_repairs_one_region_and_changes_nothing_else(capsys):
    guide = (Path(__file__).parents[2] / "docs" / "regions.md").read_text(encoding="utf-8")
    names = {}
    exec(re.search(r"```python\n(.*?)```", guide, re.DOTALL)[1], names)
    printed = capsys.readouterr().out.splitlines()
    documented = re.search(r"```\nwrong answers.*?```", guide, re.DOTALL)[0].splitlines()[1:-1]
    digits = re.compile(r"\d+")
    assert [digits.sub("", line)[:8] for line in printed] == [digits.sub("", line)[:8] for line in documented]

    before, after = ([float(percentage) for percentage in re.findall(r"([\d.]+)%", line)] for line in printed[1:3])
    assert after[0] > before[0] + 5 and after[1] == before[1]
    effect, inside = names["edit"].effect(names["test"]), names["inside"]
    assert effect["inside"].changed == effect["outside"].changed == 0  # compared with the edit that was kept
    assert "changed=0, largest=0.0" in printed[4] and f"inputs={int((~inside).sum())}" in printed[4]
