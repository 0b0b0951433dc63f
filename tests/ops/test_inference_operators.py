"""The native operators for the rest of an encoder (attention, products in 8 bits, residual and norm), compared with
PyTorch in float64."""

import pytest
import torch
import torch.nn.functional as F

from ultrafastbert.modeling_ultrafastbert import rotary_positions, rotate
from ultrafastbert.ops import native
from ultrafastbert.ops.native import build
from ultrafastbert.utils.hardware import multiplies_int8

LEVELS = 127 if multiplies_int8() else 63
"""The largest int8 weight whose products do not overflow on this processor."""

pytestmark = pytest.mark.skipif(build.compiler_version() is None and not native.available(), reason="no C++ compiler")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def loaded():
    assert native.available()


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# attention


def attention(qkv, lengths, heads):
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return torch.ops.ultrafastbert.attention(qkv, offsets, heads)


def attention_reference(qkv, lengths, heads):
    outputs = []
    for sequence in qkv.double().split(lengths):
        q, k, v = sequence.unflatten(-1, (3, heads, -1)).permute(1, 2, 0, 3)
        outputs.append(F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1))
    return torch.cat(outputs)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("lengths", [[1], [16], [5, 1, 200], [0, 7, 31, 0, 32, 33, 128, 129, 257, 0]], ids=str)
@pytest.mark.parametrize("heads, head_dim", [(3, 64), (2, 20), (1, 1), (2, 33), (1, 130)])
def test_attention_agrees_with_pytorch(dtype, lengths, heads, head_dim):
    qkv = normal(sum(lengths), 3 * heads * head_dim, dtype=dtype)
    output = attention(qkv, lengths, heads)
    assert output.dtype is dtype
    precision = {torch.float32: 1e-5, torch.float64: 1e-13}.get(dtype, torch.finfo(dtype).eps)
    expected = attention_reference(qkv, lengths, heads)
    torch.testing.assert_close(output.double(), expected, rtol=2 * precision, atol=3 * precision)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_of_large_scores(dtype):
    """One key gets all the weight, with scores so large that e^x overflows."""
    qkv = normal(40, 3 * 64, dtype=dtype)
    qkv[:, :64] = 30.0
    qkv[:, 64:128] = 0.0
    qkv[17, 64:128] = 30.0
    torch.testing.assert_close(attention(qkv, [40], 1), qkv[17, 128:].expand(40, 64))


def test_attention_keeps_sequences_apart():
    """NaN in one sequence does not change the others, and the number of threads changes no bit."""
    qkv = normal(120, 3 * 32, dtype=torch.bfloat16)
    lengths = [50, 30, 40]
    expected = attention(qkv, lengths, 2)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert torch.equal(attention(qkv, lengths, 2), expected)
    finally:
        torch.set_num_threads(threads)
    qkv[60] = float("nan")
    output = attention(qkv, lengths, 2)
    assert output[50:80].isnan().all()
    assert torch.equal(output[:50], expected[:50]) and torch.equal(output[80:], expected[80:])


def test_attention_of_strided_input():
    qkv = normal(30, 2 * 3 * 16)[:, ::2]
    torch.testing.assert_close(attention(qkv, [10, 20], 2), attention(qkv.contiguous(), [10, 20], 2))


@pytest.mark.parametrize(
    "shape, offsets, heads, match",
    [
        ((4, 10), [0, 4], 1, "qkv has shape"),
        ((4, 12), [0, 4], 0, "qkv has shape"),
        ((4, 12), [0, 3], 2, "rise from 0 to the number of tokens, 4"),
        ((4, 12), [0, 5, 4], 2, "rise from 0"),
        ((4, 12), [1, 4], 2, "rise from 0"),
    ],
)
def test_attention_checks_its_arguments(shape, offsets, heads, match):
    with pytest.raises(ValueError, match=match):
        torch.ops.ultrafastbert.attention(torch.zeros(shape), torch.tensor(offsets), heads)
    with pytest.raises(TypeError, match="offsets has dtype"):
        torch.ops.ultrafastbert.attention(torch.zeros(4, 12), torch.tensor([0, 4]).int(), 2)


# products in 8 bits


def quantized(weight):
    scale = weight.abs().amax(1) / LEVELS
    rounded = (weight / scale[:, None]).round()
    return torch.ops.onednn.qlinear_prepack(rounded.to(torch.int8), None), scale, (rounded * scale[:, None]).double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens, width, outputs", [(1, 48, 5), (7, 33, 20), (40, 100, 64)])
def test_linear_int8_multiplies_rounded_factors(dtype, tokens, width, outputs):
    x = normal(tokens, width, dtype=dtype) * torch.logspace(-3, 3, tokens)[:, None].to(dtype)
    packed, scale, weight = quantized(normal(outputs, width, seed=1))
    step = x.double().abs().amax(1, keepdim=True) / 127  # one per token
    rounded = (x.double() / step).round() * step
    expected = rounded @ weight.T
    output = torch.ops.ultrafastbert.linear_int8(x, packed, scale, torch.float32)
    size = expected.norm(dim=1, keepdim=True)
    # a number halfway between two steps may be rounded either way
    assert ((output - expected).abs() / size).max() < (1e-5 if dtype is torch.float32 else 0.03)
    narrow = torch.ops.ultrafastbert.linear_int8(x, packed, scale, torch.bfloat16)
    assert narrow.dtype is torch.bfloat16
    torch.testing.assert_close(narrow.float() / size, output / size, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("sign", [1, -1])
def test_int8_levels_do_not_overflow(sign):
    """The largest factors that a token and a weight can have, all of one sign."""
    weight = torch.full((3, 100), sign * LEVELS, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    output = torch.ops.ultrafastbert.linear_int8(torch.ones(2, 100), packed, torch.ones(3), torch.float32)
    torch.testing.assert_close(output, torch.full((2, 3), sign * 100.0 * LEVELS))


def test_linear_int8_of_zero_nan_infinite_and_no_tokens():
    x = normal(6, 32)
    packed, scale, _ = quantized(normal(8, 32, seed=1))
    expected = torch.ops.ultrafastbert.linear_int8(x, packed, scale, torch.float32)
    x[1], x[3, 5], x[4, 2] = 0.0, float("nan"), float("inf")
    output = torch.ops.ultrafastbert.linear_int8(x, packed, scale, torch.float32)
    assert (output[1] == 0).all() and output[[3, 4]].isnan().all()
    assert torch.equal(output[[0, 2, 5]], expected[[0, 2, 5]])
    assert torch.ops.ultrafastbert.linear_int8(x.view(2, 3, 32), packed, scale, torch.float32).shape == (2, 3, 8)
    assert torch.ops.ultrafastbert.linear_int8(x[:0], packed, scale, torch.float32).shape == (0, 8)


# residual and norm


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 5, 16, 33, 768])
def test_add_norm_agrees_with_pytorch(dtype, width):
    stream, weight, bias = normal(9, width), normal(width, seed=1), normal(width, seed=2)
    update = normal(9, width, dtype=dtype, seed=3)
    total = stream + update.float()
    expected = F.layer_norm(total.double(), (width,), weight.double(), bias.double(), 1e-5)
    output = torch.ops.ultrafastbert.add_norm(stream, update, weight, bias, 1e-5, dtype)
    assert torch.equal(stream, total)
    tolerance = max(1e-5, torch.finfo(dtype).eps)
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)
    again = torch.ops.ultrafastbert.add_norm(stream, None, weight, bias, 1e-5, dtype)
    assert torch.equal(again, output) and torch.equal(stream, total)


def test_add_norm_checks_its_arguments():
    stream, norm = torch.zeros(4, 8), (torch.ones(8), torch.zeros(8), 1e-5)
    add_norm = torch.ops.ultrafastbert.add_norm
    with pytest.raises(ValueError, match="stream should be"):
        add_norm(stream.bfloat16(), None, *norm, torch.bfloat16)
    with pytest.raises(ValueError, match="update has shape"):
        add_norm(stream, torch.zeros(4, 8), *norm, torch.bfloat16)
    with pytest.raises(ValueError, match="weight and bias should be"):
        add_norm(stream, None, torch.ones(7), torch.zeros(8), 1e-5, torch.float32)
    with pytest.raises(TypeError, match="should be float32, bfloat16 or float16"):
        add_norm(stream, None, *norm, torch.float64)


# registration with PyTorch


def test_operators_pass_opcheck():
    packed, scale, _ = quantized(normal(8, 48))
    operators = torch.ops.ultrafastbert
    arguments = normal(10, 48), torch.tensor([0, 4, 10]), 2
    torch.library.opcheck(operators.attention.default, arguments, test_utils=("test_schema", "test_faketensor"))
    arguments = normal(10, 48), None, torch.ones(48), torch.zeros(48), 1e-5, torch.bfloat16
    torch.library.opcheck(operators.add_norm.default, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (2, 6), (3, 16), (2, 34), (4, 64)])
def test_rotate(heads, head_dim, dtype):
    """Queries and keys turn as in the model, values stay; rounded once."""
    torch.manual_seed(0)
    cosine, sine = rotary_positions(torch.tensor([0, 5, 1, 90, 2]), head_dim, 10000.0)
    qkv = torch.randn(5, 3 * heads * head_dim).to(dtype)
    query, key, value = qkv.float().view(5, 3, heads, head_dim).unbind(1)
    turned = [rotate(part, cosine[:, None], sine[:, None]) for part in (query, key)]
    expected = torch.stack([*turned, value], dim=1).view(5, -1)
    half = head_dim // 2
    torch.ops.ultrafastbert.rotate_(qkv, cosine[:, :half], sine[:, :half], heads)
    rounding = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    torch.testing.assert_close(qkv.float(), expected, atol=1e-6, rtol=rounding)


def test_rotate_checks():
    qkv, table = torch.zeros(2, 12), torch.zeros(2, 1)
    torch.ops.ultrafastbert.rotate_(qkv, table, table, 2)
    with pytest.raises(ValueError, match="qkv has shape"):
        torch.ops.ultrafastbert.rotate_(torch.zeros(2, 9), table, table, 3)  # heads of width 1
    with pytest.raises(ValueError, match="cosine and sine should be float32"):
        torch.ops.ultrafastbert.rotate_(qkv, table, torch.zeros(3, 1), 2)
    with pytest.raises(ValueError, match="cosine and sine should be float32"):
        torch.ops.ultrafastbert.rotate_(qkv, table.double(), table, 2)
