"""The native cross-entropy: PyTorch's values and gradients, ignored rows, numbers that are not finite, errors."""

import pytest
import torch
from torch.nn import functional

from ultrafastbert import UltraFastBertConfig, UltraFastBertForMaskedLM
from ultrafastbert.modeling_ultrafastbert import masked_lm_loss
from ultrafastbert.ops import native
from ultrafastbert.ops.cross_entropy import cross_entropy

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(autouse=True)
def operator():
    if not native.available():
        pytest.skip("needs a C++ compiler")


def make(rows, classes, dtype=torch.float32, scale=3.0):
    generator = torch.Generator().manual_seed(rows + classes)
    logits = (scale * torch.randn(rows, classes, generator=generator)).to(dtype)
    labels = torch.randint(classes, (rows,), generator=generator)
    labels[1::3] = -100
    return logits, labels, torch.randn(rows, generator=generator)


def run(logits, labels, upstream, loss=cross_entropy):
    logits = logits.detach().requires_grad_()
    losses = loss(logits, labels)
    return losses.detach(), torch.autograd.grad(losses, logits, upstream.to(losses.dtype))[0]


def by_pytorch(logits, labels):
    return functional.cross_entropy(logits, labels, reduction="none")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, classes", [(1, 1), (7, 5), (4, 16), (5, 67), (30, 1000), (9, 8192)])
def test_agrees_with_float64(rows, classes, dtype):
    logits, labels, upstream = make(rows, classes, dtype)
    losses, gradient = run(logits, labels, upstream)
    assert losses.dtype == torch.promote_types(dtype, torch.float32) and gradient.dtype == dtype
    expected, exact = run(logits.double(), labels, upstream, by_pytorch)
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6  # sums and exponentials are in float32
    torch.testing.assert_close(losses.double(), expected, rtol=tolerance, atol=tolerance)
    rounding = max(tolerance, torch.finfo(dtype).eps)
    torch.testing.assert_close(gradient.double(), exact, rtol=rounding, atol=rounding * 1e-3 + 1e-7)
    assert losses[labels == -100].eq(0).all() and gradient[labels == -100].eq(0).all()


@pytest.mark.parametrize("scale", [0.0, 1e3, 1e30])
def test_agrees_with_pytorch_whatever_the_size_of_logits(scale):
    logits, labels, upstream = make(12, 40, scale=scale)
    for result, expected in zip(run(logits, labels, upstream), run(logits, labels, upstream, by_pytorch), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 37, 39])  # in whole vectors, and in the rest of a row
def test_numbers_that_are_not_finite_reach_their_row_only(value, place):
    logits, labels, upstream = make(6, 40)
    logits[0, place] = value
    for result, expected in zip(run(logits, labels, upstream), run(logits, labels, upstream, by_pytorch), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert run(logits, labels, upstream)[0][1:].isfinite().all()


def test_no_rows_and_strided_logits():
    empty = cross_entropy(torch.empty(0, 5, requires_grad=True), torch.empty(0, dtype=torch.int64))
    empty.sum().backward()
    assert empty.shape == (0,)
    logits, labels, upstream = make(9, 40)
    for result, expected in zip(
        run(logits.T.contiguous().T, labels, upstream), run(logits, labels, upstream), strict=True
    ):
        assert torch.equal(result, expected)


def test_results_do_not_depend_on_other_rows_or_threads():
    logits, labels, upstream = make(64, 1000)
    threads = torch.get_num_threads()
    whole = run(logits, labels, upstream)
    try:
        torch.set_num_threads(3)
        assert all(map(torch.equal, run(logits, labels, upstream), whole))
    finally:
        torch.set_num_threads(threads)
    part = run(logits[5:9], labels[5:9], upstream[5:9])
    assert torch.equal(part[0], whole[0][5:9]) and torch.equal(part[1], whole[1][5:9])


@pytest.mark.parametrize("label", [-1, 5, -101, 2**40])
def test_a_label_that_is_no_class(label):
    with pytest.raises(IndexError, match=rf"labels has {label}; labels should be from 0 to 4, or -100"):
        cross_entropy(torch.zeros(2, 5), torch.tensor([0, label]))
    with pytest.raises(IndexError, match=rf"labels has {label}; "):  # which would be a write outside of the array
        torch.ops.ultrafastbert.cross_entropy_backward(
            torch.zeros(2), torch.zeros(2, 5), torch.tensor([0, label]), torch.zeros(2)
        )


def test_other_arguments_that_do_not_fit():
    operator = torch.ops.ultrafastbert.cross_entropy
    logits, labels = torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64)
    for given, message in (
        ((logits[0], labels), r"logits has shape \[5\]; it should be \(rows, classes\)"),
        ((logits, labels[:1]), r"labels has shape \[1\]; it should be \(2,\)"),
        ((logits[:, :0], labels), "at least one class"),
    ):
        with pytest.raises(ValueError, match=message):
            operator(*given)
    with pytest.raises(TypeError, match="labels has dtype"):
        operator(logits, labels.int())
    with pytest.raises(TypeError, match="logits has dtype"):
        operator(logits.int(), labels)


def test_opcheck_and_second_derivatives():
    logits, labels, upstream = make(6, 40)
    torch.library.opcheck(torch.ops.ultrafastbert.cross_entropy, (logits.requires_grad_(), labels))
    losses = cross_entropy(logits, labels)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        torch.autograd.grad(losses, logits, upstream, create_graph=True)[0].sum().backward()
    logits, labels, _ = make(6, 7, torch.float64)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, labels), logits.requires_grad_())


def test_the_loss_of_the_model_is_that_of_transformers():
    """Also divided by a number of items, and for labels that are all ignored."""
    from transformers.loss.loss_utils import ForMaskedLMLoss

    model = UltraFastBertForMaskedLM(
        UltraFastBertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, fff_depth=2)
    )
    assert model.loss_function is masked_lm_loss
    logits, labels, _ = make(12, 50)
    logits, labels = logits.view(3, 4, 50), labels.view(3, 4)
    for options in ({}, {"num_items_in_batch": 7}, {"num_items_in_batch": torch.tensor(7)}):
        result, expected = (
            loss(logits, labels, vocab_size=50, **options) for loss in (masked_lm_loss, ForMaskedLMLoss)
        )
        torch.testing.assert_close(result, expected)
    assert masked_lm_loss(logits, labels.fill_(-100), vocab_size=50).isnan()


def test_without_the_operator(monkeypatch):
    logits, labels, upstream = make(30, 67, torch.bfloat16)
    expected = run(logits, labels, upstream)
    monkeypatch.setattr(native, "available", lambda: False)
    for result, truth in zip(run(logits, labels, upstream), expected, strict=True):
        torch.testing.assert_close(result, truth, rtol=1e-2, atol=1e-6)
