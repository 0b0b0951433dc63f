"""Feedforward layers of any model are replaced in place; what cannot be replaced is refused, and nothing changes."""

import copy
import re

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from ultrafastbert import FFF, FeedForward, HardFFF, replace_feedforward
from ultrafastbert.layers.replace import NoFeedForward

SIZES = {"1x3": FFF, "2x2": FFF, "1x2x4": HardFFF, "dense-5": FeedForward, "none": NoFeedForward}
BERT = ("*.intermediate", "*.output.dense")
NO_SPECIAL = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


class Block(nn.Module):
    """A residual block whose feedforward layer is one module."""

    def __init__(self, width, hidden=12):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


def own():
    return nn.Sequential(Block(8), Block(8), Block(8))


def bert():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return BertForSequenceClassification(BertConfig(vocab_size=30, max_position_embeddings=16, **sizes))


def vit():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **sizes))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=16, n_embd=16, n_layer=2, n_head=2, **NO_SPECIAL))


def llama():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return LlamaForCausalLM(LlamaConfig(vocab_size=30, **sizes, **NO_SPECIAL))


TOKENS = {"input_ids": torch.arange(2 * 7).view(2, 7)}
PIXELS = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)}
MODELS = {
    "own": (own, "*.mlp", {"input": torch.linspace(-1, 1, 2 * 5 * 8).view(2, 5, 8)}),
    "bert": (bert, BERT, TOKENS),
    "vit": (vit, "*.mlp", PIXELS),
    "gpt2": (gpt2, "*.mlp", TOKENS),
    "llama": (llama, "*.mlp", TOKENS),
}


@pytest.fixture(params=MODELS)
def model_pattern_inputs(request):
    torch.manual_seed(0)
    build, pattern, inputs = MODELS[request.param]
    return build().eval(), pattern, inputs


def output(model, inputs):
    result = model(**inputs)
    return result if isinstance(result, torch.Tensor) else result.logits


@pytest.mark.parametrize("size", SIZES)
def test_every_selected_layer_is_replaced_and_the_model_trains(model_pattern_inputs, size):
    model, pattern, inputs = model_pattern_inputs
    before = output(model, inputs)
    kept = {name for name, _ in model.named_parameters() if not any(part in name for part in FEEDFORWARD)}
    replaced = replace_feedforward(model, pattern, size)
    assert len(replaced) == (3 if isinstance(model, nn.Sequential) else 2)
    for name, layer in replaced.items():
        assert type(layer) is SIZES[size] and model.get_submodule(name) is layer
    new = {f"{name}.{each}" for name, layer in replaced.items() for each, _ in layer.named_parameters()}
    assert {name for name, _ in model.named_parameters()} == kept | new

    after = output(model, inputs)
    assert after.shape == before.shape and after.isfinite().all() and not torch.equal(after, before)
    if not after.requires_grad:  # without feedforward layers, a stack of them alone has no parameters in use
        return
    (after * torch.linspace(-1, 2, after.numel()).view_as(after)).sum().backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    if size == "none":  # nothing depends on the norm before a layer that returns zeros
        without -= {name for name in without if re.search(r"norm|ln_2", name)}
    assert not without


FEEDFORWARD = ("mlp", "intermediate", "layer.0.output.dense", "layer.1.output.dense")
"""What the names of parameters that are replaced contain."""


def test_a_replaced_layer_computes_what_it_replaces_if_it_has_its_weights():
    """The tree is called in the place of the old layer, with its input, and its output is used."""
    for build, pattern, inputs in (MODELS["own"], MODELS["bert"], MODELS["vit"]):
        torch.manual_seed(0)
        model = build().eval()
        activation = nn.ReLU() if build is own else nn.GELU()
        old = [m for m in model.modules() if isinstance(m, nn.Linear) and {12, 24} & {m.in_features, m.out_features}]
        expected, neurons = output(model, inputs), old[0].out_features
        layers = list(replace_feedforward(model, pattern, f"dense-{neurons}").values())
        for layer, first, last in zip(layers, old[::2], old[1::2], strict=True):
            layer.expand.load_state_dict(first.state_dict())
            layer.contract.load_state_dict(last.state_dict())
            layer.activation = activation
        torch.testing.assert_close(output(model, inputs), expected)


def test_none_leaves_the_residual_connection_alone():
    torch.manual_seed(0)
    model, x = own(), torch.randn(3, 8)
    replace_feedforward(model, "*.mlp", "none")
    torch.testing.assert_close(model(x), x)
    model = bert().eval()
    replace_feedforward(model, BERT, "none")
    layer, x = model.bert.encoder.layer[0], torch.randn(1, 3, 16)
    torch.testing.assert_close(layer.feed_forward_chunk(x), layer.output.LayerNorm(x))


@pytest.mark.parametrize("size", SIZES)
def test_dtype_device_and_mode_are_kept(size):
    model = own().to(torch.bfloat16)
    model[0].eval()
    for name, layer in replace_feedforward(model, "*.mlp", size).items():
        assert {p.dtype for p in layer.parameters()} <= {torch.bfloat16}
        assert all(module.training == (name != "0.mlp") for module in layer.modules())
    assert model(torch.randn(4, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with torch.device("meta"):
        model = own()
    for layer in replace_feedforward(model, "*.mlp", size).values():
        assert all(p.is_meta for p in layer.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_state_dicts_are_saved_and_loaded(model_pattern_inputs, size, tmp_path):
    model, pattern, inputs = model_pattern_inputs
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    replace_feedforward(model, pattern, size)
    replace_feedforward(other, pattern, size)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert torch.equal(output(other, inputs), output(model, inputs))


@pytest.mark.parametrize("first", SIZES)
@pytest.mark.parametrize("second", SIZES)
def test_layers_can_be_replaced_again(model_pattern_inputs, first, second):
    model, pattern, inputs = model_pattern_inputs
    replaced = replace_feedforward(model, pattern, first)
    width = 8 if isinstance(model, nn.Sequential) else 16
    again = replace_feedforward(model, pattern, second, hidden_size=width if first == "none" else None)
    assert again.keys() == replaced.keys() and all(type(layer) is SIZES[second] for layer in again.values())
    assert output(model, inputs).isfinite().all()


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("1.mlp", ["1.mlp"]),
        ("[02].mlp", ["0.mlp", "2.mlp"]),
        ("[!0].mlp", ["1.mlp", "2.mlp"]),
        ("?.mlp", ["0.mlp", "1.mlp", "2.mlp"]),
        ("*mlp", ["0.mlp", "1.mlp", "2.mlp"]),
    ],
)
def test_globs_select_by_name(pattern, names):
    assert list(replace_feedforward(own(), pattern, "1x2")) == names


def test_the_wildcards_of_a_pair_stand_for_the_same_texts():
    model = bert()
    attention = model.bert.encoder.layer[1].attention.output.dense  # its name matches *.output.dense too
    replaced = replace_feedforward(model, ("*.layer.[1-9].intermediate", "*.layer.[1-9].output.dense"), "1x2")
    assert list(replaced) == ["bert.encoder.layer.1.intermediate"]
    first, second = model.bert.encoder.layer
    assert isinstance(second.output.dense, nn.Identity) and second.attention.output.dense is attention
    assert isinstance(first.output.dense, nn.Linear)


def test_a_module_used_in_two_places_is_replaced_by_one_layer():
    block = Block(8)
    model = nn.ModuleDict({"a": block, "b": nn.ModuleDict({"mlp": block.mlp})})
    replaced = replace_feedforward(model, "*.mlp", "1x2")
    assert list(replaced) == ["a.mlp", "b.mlp"]
    assert replaced["a.mlp"] is replaced["b.mlp"] is block.mlp is model["b"]["mlp"]


def test_layers_of_different_widths_keep_theirs():
    model = nn.ModuleList([Block(8), Block(6)])
    assert [layer.hidden_size for layer in replace_feedforward(model, "*.mlp", "1x2").values()] == [8, 6]


class Einsum(nn.Module):
    """A feedforward layer without linear layers."""

    def __init__(self):
        super().__init__()
        self.weight_in, self.weight_out = nn.Parameter(torch.randn(8, 12)), nn.Parameter(torch.randn(12, 8))


def test_the_width_can_be_given():
    model = nn.ModuleDict({"mlp": Einsum()}).double()
    with pytest.raises(ValueError, match=r"the width of mlp cannot be told from its linear layers \(none\)"):
        replace_feedforward(model, "mlp", "1x2")
    layer = replace_feedforward(model, "mlp", "1x2", hidden_size=8)["mlp"]
    assert layer.weight_in.shape == (1, 7, 8) and layer.weight_in.dtype == torch.float64


@pytest.mark.parametrize(
    "build, pattern, message",
    [
        (own, "*.ffn", r"'\*.ffn' matches no submodule; near names: .*\*.mlp"),
        (own, "", r"'' matches no submodule"),
        (bert, "*.mlp", r"near names: .*bert.encoder.layer.\*.intermediate"),
        (own, "*", "selects '0' and, inside it, '0.norm'"),
        (own, "*.mlp.0", "'0.mlp.0', a linear layer alone"),
        (bert, "*.intermediate", r"layer.0.intermediate cannot be told from its linear layers \(16 -> 24\).*a pair"),
        (bert, ("*.intermediate", "*.output"), "a BertOutput, as the second of a pair.*'bert.*layer.0.output.dense'"),
        (bert, ("*.intermediate", "*.down"), r"'\*.down' gives 'bert.encoder.layer.0.down'.*near names: .*layer"),
        (bert, ("*.intermediate.dense", "*.output.dense"), "a linear layer alone.*holds the activation"),
        (bert, ("*.intermediate", "bert.output"), "a pair of globs with the same wildcards"),
        (bert, ("*.intermediate", "*.output", "*.x"), "it should be a glob, or a pair"),
        (own, ("*.mlp", "*.mlp.2"), "selects '0.mlp' and, inside it, '0.mlp.2'"),
        (nn.Sequential, "*", "near names: none has linear layers"),
        (lambda: nn.TransformerEncoderLayer(8, 2), ("linear1", "linear2"), "'linear1', a linear layer alone"),
    ],
)
def test_what_cannot_be_replaced_is_named_and_nothing_changes(build, pattern, message):
    model = build()
    before = [(name, id(module)) for name, module in model.named_modules()]
    with pytest.raises(ValueError, match=message):
        replace_feedforward(model, pattern, "1x2")
    assert [(name, id(module)) for name, module in model.named_modules()] == before


def test_an_error_at_the_last_layer_changes_no_other():
    model = nn.ModuleDict({"a": Block(8), "b": nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(8, 9), nn.ReLU())})})
    with pytest.raises(ValueError, match="the width of b.mlp cannot be told"):
        replace_feedforward(model, "*.mlp", "1x2")
    assert isinstance(model["a"].mlp, nn.Sequential)


@pytest.mark.parametrize("size, message", [("1x", "size is '1x'"), ("dense", "size is 'dense'")])
def test_wrong_sizes_are_named(size, message):
    with pytest.raises(ValueError, match=message):
        replace_feedforward(own(), "*.mlp", size)
    with pytest.raises(ValueError, match="hidden_size is 0; it should be an integer, at least 1"):
        replace_feedforward(own(), "*.mlp", "1x2", hidden_size=0)
