"""An optimised model that several threads call, and that is called many times."""

from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch

from tests.inference.test_optimize import ARCHITECTURES, make, needs_native, optimized

SHAPES = [(1, 3), (2, 40), (1, 17), (5, 8), (1, 40), (3, 1)]


def batches(count, vocabulary):
    """Tokens of mixed shapes, with padding on the right in every second batch."""
    generator = torch.Generator().manual_seed(0)
    for index in range(count):
        tokens = torch.randint(1, vocabulary, SHAPES[index % len(SHAPES)], generator=generator)
        mask = torch.ones_like(tokens)
        if index % 2:
            mask[:, 1 + tokens.shape[1] // 2 :] = 0
        yield {"input_ids": tokens, "attention_mask": mask}


@pytest.fixture(autouse=True)
def one_thread():
    """Of PyTorch for each caller."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@needs_native
@pytest.mark.parametrize("dtype, int8", [("float32", False), ("bfloat16", False), ("bfloat16", True)])
@pytest.mark.parametrize("architecture", ["fff", "leaves", "dense", "mixed"])
def test_callers_do_not_disturb_each_other(architecture, dtype, int8):
    """Outputs are equal to the last bit to those without other callers."""
    model = make(**ARCHITECTURES[architecture])
    fast = optimized(model, dtype=dtype, int8=int8)

    @torch.inference_mode()
    def encode(batch):
        return fast(**batch).last_hidden_state

    work = list(batches(60, model.config.vocab_size))
    alone = list(map(encode, work))
    with ThreadPoolExecutor(8) as pool:
        for output, expected in zip(pool.map(encode, work), alone, strict=True):
            assert torch.equal(output, expected)


@needs_native
@pytest.mark.slow
def test_memory_stays_the_same():
    """After the first 500 calls of mixed shapes, thousands more from four threads take no more memory."""
    model = make()
    fast, process = optimized(model, dtype="bfloat16", int8="auto"), psutil.Process()

    @torch.inference_mode()
    def encode(batch):
        fast(**batch)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(encode, batches(500, model.config.vocab_size)))
        before = process.memory_info().rss
        for _ in range(4):
            list(pool.map(encode, batches(500, model.config.vocab_size)))
    assert process.memory_info().rss - before < 8e6
