"""Every operator refuses tensors of another device, layout or dtype by name, for each argument and each backend."""

import pytest
import torch

from ultrafastbert import ops
from ultrafastbert.ops import native
from ultrafastbert.ops.leaves import leaves

TREES = {"x": (5, 16), "weight_in": (2, 7, 16), "bias_in": (2, 7), "weight_out": (2, 7, 16)}
LEAVES = {"x": (5, 16), "node_weight": (3, 1, 16), "node_bias": (3, 1), "weight_in": (4, 6, 16), "bias_in": (4, 6)}
LEAVES |= {"weight_out": (4, 6, 16), "bias_out": (4, 16)}

WRONG = {
    "meta": (ValueError, lambda t: t.to("meta")),
    "sparse": (ValueError, lambda t: t.to_sparse()),
    "mkldnn": (ValueError, lambda t: t.to_mkldnn()),
    "nested": (ValueError, lambda t: torch.nested.as_nested_tensor(list(t.unbind()))),
    "jagged": (ValueError, lambda t: torch.nested.as_nested_tensor(list(t.unbind()), layout=torch.jagged)),
    "float16": (TypeError, lambda t: t.half()),
    "integers": (TypeError, lambda t: t.int()),
    "complex": (TypeError, lambda t: t.to(torch.complex64)),
}
SAME = {
    "strided": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "transposed": lambda t: t.mT.contiguous().mT,
    "negated lazily": lambda t: torch._neg_view(-t),
    "expanded": lambda t: t[None].expand(2, *t.shape)[1],
}
BACKENDS = [name for name in ops.BACKENDS if name != "native" or native.available()]


def fff(backend):
    return lambda **tensors: ops.fff(**tensors, backend=backend)


def route(backend):
    return lambda weight_out, **tensors: ops.route(**tensors, backend=backend)


CALLS = {f"fff {backend}": fff(backend) for backend in BACKENDS}
CALLS |= {f"route {backend}": route(backend) for backend in BACKENDS}
CALLS |= {"leaves": lambda **tensors: leaves(**tensors)[0]}


def make(call, requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    shapes = LEAVES if call == "leaves" else TREES
    return {name: torch.randn(s, generator=generator).requires_grad_(requires_grad) for name, s in shapes.items()}


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("call", CALLS)
def test_wrong_tensors_are_refused_by_name(call, wrong, requires_grad):
    error, change = WRONG[wrong]
    arguments = make(call, requires_grad)
    for name in arguments:
        if name == "weight_out" and call.startswith("route"):
            continue
        other = arguments | {name: change(arguments[name].detach()).requires_grad_(requires_grad and wrong == "meta")}
        # where x differs, all others do not have its device and dtype
        named = "weight_in|node_weight" if name == "x" and wrong in ("meta", "float16") else name
        with pytest.raises(error, match=rf"^({named}) (has|is on) .*; it should"):
            CALLS[call](**other)


@pytest.mark.parametrize("change", SAME)
@pytest.mark.parametrize("call", CALLS)
def test_views_give_the_same_result(call, change):
    arguments = make(call)
    expected = CALLS[call](**arguments)
    for name in arguments:
        torch.testing.assert_close(CALLS[call](**(arguments | {name: SAME[change](arguments[name])})), expected)


@pytest.mark.parametrize("wrong", WRONG)
def test_leaves_without_native_operators(monkeypatch, wrong):
    monkeypatch.setattr(native, "available", lambda: False)
    test_wrong_tensors_are_refused_by_name("leaves", wrong, False)


@pytest.mark.skipif(not native.available(), reason="no C++ compiler")
@pytest.mark.parametrize("call", ["fff", "leaves"])
def test_the_operators_themselves_refuse_a_mixture_with_meta(call):
    """Where one tensor of several is on `meta`, PyTorch calls what gives the shapes, and would return its memory."""
    arguments = list(make("leaves" if call == "leaves" else "fff").values())
    for place in range(len(arguments)):
        mixed = [t.to("meta") if i == place else t for i, t in enumerate(arguments)]
        for name in (call, f"{call}_with_path"):
            with pytest.raises(ValueError, match="on devices cpu, meta"):
                getattr(torch.ops.ultrafastbert, name)(*mixed)


@pytest.mark.skipif(not native.available(), reason="no C++ compiler")
def test_the_backward_operators_check_shapes():
    operators = torch.ops.ultrafastbert
    x, weight_in, bias_in, weight_out = make("fff").values()
    _, leaf, z = operators.fff_with_path(x, weight_in, bias_in, weight_out)
    for wrong in (z[..., :2], z[:4], z[:, :1]):
        with pytest.raises(ValueError):
            operators.backward_tokens(x, weight_in, weight_out, leaf, wrong)
    with pytest.raises(ValueError):
        operators.backward_weights(x[:, :8].contiguous(), x, leaf, z, z)
    x, node, node_bias, weight_in, bias_in, weight_out, bias_out = make("leaves").values()
    _, leaf, z = operators.leaves_with_path(x, node, node_bias, weight_in, bias_in, weight_out, bias_out)
    with pytest.raises(ValueError):
        operators.leaves_backward_tokens(x, weight_in[:, :5], weight_out[:, :5], leaf, z)
    with pytest.raises(ValueError):
        operators.leaves_backward_weights(x[:, :8].contiguous(), x, leaf, z, z, 4)


@pytest.mark.parametrize("name", list(LEAVES))
def test_shapes_of_leaves(name):
    arguments = make("leaves")
    right = arguments[name]
    for wrong in (right[..., :1], torch.zeros(0), torch.tensor(1.0)):
        if wrong.shape != right.shape:
            with pytest.raises(ValueError, match="has shape .*; it should be"):
                leaves(**(arguments | {name: wrong}))
