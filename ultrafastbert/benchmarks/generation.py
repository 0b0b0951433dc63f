"""Times text generation, token by token, by a decoder with trees and with the feedforward layers it comes with.

The decoder is transformers' GPT-2 with random weights, in which `replace_feedforward` puts the other layers. A call
processes a few tokens one after the other on top of a cached context and takes the most likely next token each time.
The tokens themselves are random: what a decoder with random weights generates soon repeats, and repeated tokens would
take paths whose weights are in the processor's cache.

All are in float32. Before a decoder is timed, its logits are compared with those of a copy that processes all tokens
at once and whose trees are evaluated by the reference. In bfloat16 there would be nothing to compare: with random
weights a few of the many decisions turn out otherwise, and change all that follows.
"""

import copy
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from ultrafastbert import FFF, replace_feedforward
from ultrafastbert.benchmarks.bert import split_trees
from ultrafastbert.benchmarks.harness import (
    LISTED_ONCE,
    POSITIVE_INTEGERS,
    Benchmark,
    Case,
    Contender,
    Ready,
    Result,
    count_threads,
    digits,
    results_table,
    typical_error,
)
from ultrafastbert.utils.sizes import parse_size
from ultrafastbert.utils.validation import Rule, check, check_fields, integer

UNCHANGED = "gpt2"
"""The decoder whose feedforward layers are not replaced; they have four times its width."""


@dataclass
class GenerationArguments:
    """What is timed."""

    sizes: list[str] = field(default_factory=lambda: ["1x11", "1x7x32", "none"])
    """Feedforward layers in place of GPT-2's own, as TREESxDEPTH, 1xDEPTHxLEAF, dense-NEURONS or none, the limit of
    what faster feedforward layers can bring."""
    contexts: list[int] = field(default_factory=lambda: [128, 512])
    """Tokens before those that are processed one by one. [tokens]"""
    tokens: int = 8
    """Tokens in a call, one after the other. [tokens]"""
    threads: list[int] = field(default_factory=lambda: [1])
    """Threads of PyTorch."""
    num_hidden_layers: int = 12
    """Transformer layers."""
    hidden_size: int = 768
    """Width."""
    num_attention_heads: int = 12
    """Attention heads."""
    vocabulary: int = 50257
    """Tokens in the vocabulary."""
    seconds: float = 20.0
    """How long each decoder is timed in each case, at least three bursts. [seconds]"""
    output_dir: str = "out/benchmark_generation"
    """Where generation.json and generation.md are written."""

    def __post_init__(self):
        check_fields(self, LISTED_ONCE, "sizes", "contexts", "threads")
        for size in self.sizes:
            parse_size(size, "sizes")
        check_fields(self, POSITIVE_INTEGERS, "contexts", "threads")
        check_fields(self, integer(1), "tokens", "num_hidden_layers", "hidden_size", "num_attention_heads")
        check("vocabulary", self.vocabulary, integer(2))
        divisor = Rule(lambda heads: self.hidden_size % heads == 0, f"a divisor of hidden_size, {self.hidden_size}")
        check("num_attention_heads", self.num_attention_heads, divisor)


class Generated(NamedTuple):
    """The tokens of a call, int64 `(tokens,)`, and the logits after each, `(tokens, vocabulary)`."""

    tokens: Tensor
    logits: Tensor


def benchmark(arguments: GenerationArguments) -> None:
    """Times all decoders and writes generation.json and generation.md."""
    harness = Benchmark("generation", arguments, ["transformers"])
    cases: list[Case] = [
        {"threads": threads, "context": context}
        for threads, context in itertools.product(arguments.threads, arguments.contexts)
    ]
    for case in harness.remaining(cases):
        torch.set_num_threads(case["threads"])
        names = [UNCHANGED, *arguments.sizes]
        contenders = [Contender(name, functools.partial(_set_up, arguments, case, name)) for name in names]
        harness.measure(case, contenders, required=UNCHANGED)
    harness.finish(_tables(arguments, harness))


def build_decoder(arguments: GenerationArguments, name: str) -> GPT2LMHeadModel:
    """GPT-2 with random weights, in evaluation mode, with feedforward layers of this size or its own."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=arguments.vocabulary,
        n_positions=max(arguments.contexts) + arguments.tokens,
        n_embd=arguments.hidden_size,
        n_layer=arguments.num_hidden_layers,
        n_head=arguments.num_attention_heads,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).eval()
    if name != UNCHANGED:
        replace_feedforward(model, "*.mlp", name)
        split_trees(model)
    return model


def _set_up(arguments: GenerationArguments, case: Case, name: str) -> Ready:
    model = build_decoder(arguments, name)
    generator = torch.Generator().manual_seed(0)
    context = torch.randint(arguments.vocabulary, (case["context"],), generator=generator)

    def error(generated: Generated) -> float:
        reference = copy.deepcopy(model)
        for module in reference.modules():
            if isinstance(module, FFF):
                module.backend = "reference"
        with torch.inference_mode():
            expected = reference(torch.cat([context, generated.tokens])[None]).logits[0, len(context) - 1 :]
        return typical_error(generated.logits, expected[1:])

    def facts(median: float) -> dict[str, Any]:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return {"parameters": parameters, "tokens_per_second": arguments.tokens / median}

    return Ready(_generation(model, context, arguments.tokens, generator), error, facts)


def _generation(
    model: GPT2LMHeadModel, context: Tensor, count: int, generator: torch.Generator
) -> Callable[[], Generated]:
    """A call that processes `count` random tokens one by one after the context, which stays in the cache."""
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(context[None], past_key_values=cache)

    def call() -> Generated:
        tokens = torch.randint(model.config.vocab_size, (count,), generator=generator)
        logits = []
        with torch.inference_mode():
            for token in tokens:
                logits.append(model(token.view(1, 1), past_key_values=cache).logits[0, -1])
                logits[-1].argmax().item()  # as greedy decoding does
            cache.crop(-count)
        return Generated(tokens, torch.stack(logits))

    return call


def _tables(arguments: GenerationArguments, harness: Benchmark) -> list[str]:
    def cell(result: Result) -> str:
        return f"{digits(1e3 * result['median'] / arguments.tokens)} ms"

    parts = [
        f"GPT-2 of {arguments.num_hidden_layers} layers, width {arguments.hidden_size},"
        f" {arguments.num_attention_heads} heads, a vocabulary of {arguments.vocabulary:,}, random weights, float32,"
        f" with its own feedforward layers of {4 * arguments.hidden_size:,} neurons ({UNCHANGED}) or others in their"
        " place. Time for a token, one by one, after a context in the cache: medians, and how many times faster than"
        f" {UNCHANGED}. {harness.described()}"
    ]
    for threads in arguments.threads:
        columns = {
            f"{context:,} tokens before": harness.select(threads=threads, context=context)
            for context in arguments.contexts
        }
        parts += [f"**{count_threads(threads)}**", results_table("feedforward", columns, cell, UNCHANGED)]
    return parts
