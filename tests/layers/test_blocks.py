"""`grouped_feedforward` against a loop over tokens and their blocks."""

import pytest
import torch

from ultrafastbert.layers.blocks import grouped_feedforward


def make(tokens, k, blocks):
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, 3), (blocks, 2, 3), (blocks, 2), (blocks, 2, 4), (blocks, 4)]
    x, *weights = (torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes)
    return x, torch.randint(blocks, (tokens, k), generator=generator), weights


def one_by_one(x, block, weight_in, bias_in, weight_out, bias_out):
    outputs = [
        torch.tanh(weight_in[i] @ token + bias_in[i]) @ weight_out[i] + bias_out[i]
        for token, chosen in zip(x, block, strict=True)
        for i in chosen
    ]
    return torch.stack(outputs).view(*block.shape, 4) if outputs else x.new_zeros(*block.shape, 4)


@pytest.mark.parametrize("tokens", [0, 1, 2, 30])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("blocks", [1, 3, 50])
def test_outputs_and_gradients_agree_with_a_loop(tokens, k, blocks):
    x, block, weights = make(tokens, k, blocks)
    output, expected = grouped_feedforward(x, block, *weights, torch.tanh), one_by_one(x, block, *weights)
    torch.testing.assert_close(output, expected)
    with torch.inference_mode():
        torch.testing.assert_close(grouped_feedforward(x, block, *weights, torch.tanh), expected)
    if tokens:
        grads = [torch.autograd.grad(out.square().sum(), (x, *weights)) for out in (output, expected)]
        torch.testing.assert_close(*grads)


def test_second_derivatives_are_correct():
    x, block, weights = make(4, 2, 3)
    assert torch.autograd.gradgradcheck(
        lambda *inputs: grouped_feedforward(inputs[0], block, *inputs[1:], torch.tanh), (x, *weights)
    )


def test_output_has_the_order_of_the_tokens():
    x, _, weights = make(6, 1, 3)
    block = torch.tensor([[2], [0], [2], [1], [0], [2]])
    torch.testing.assert_close(grouped_feedforward(x, block, *weights, torch.tanh), one_by_one(x, block, *weights))
