"""Times an encoder of the BERT family in transformers, converted, and optimised, on this CPU.

    python scripts/time_converted.py --model DIR_OR_ID [--threads 1] [--seconds 20] [--output_dir out/time_converted]

Tokens are random, because times do not depend on them. Contenders take turns, so that other load on the machine slows
them all down alike.
"""

import functools
import sys
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel

from ultrafastbert import optimize_for_inference
from ultrafastbert.benchmarks.encoder_contenders import inputs, mixed_lengths, quieten
from ultrafastbert.benchmarks.harness import Benchmark, Case, Contender, Ready
from ultrafastbert.cli import parse_arguments
from ultrafastbert.conversion.bert import load_encoder
from ultrafastbert.conversion.files import find_model
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.tables import markdown_table

WORKLOADS = ["1x16", "1x128", "mixed"]
OPTIMIZED = {"float32": False, "int8": True}
"""`int8` of `optimize_for_inference`, by what follows `optimized-`."""


@dataclass
class Arguments:
    """What is timed."""

    model: str
    """A directory, or a name on the Hub."""
    threads: int = 1
    """Threads of each contender."""
    seconds: float = 20.0
    """How long each contender is timed with each workload. [seconds]"""
    output_dir: str = "out/time_converted"
    """Where converted.json and converted.md are written."""


def batch(workload: str, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask `(batch, seq)`; `mixed` is 32 sequences, those of the benchmark of encoders twice."""
    if workload != "mixed":
        return inputs(workload, vocabulary)
    lengths = mixed_lengths().repeat(2)
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    tokens = torch.randint(1, vocabulary, mask.shape, generator=torch.Generator().manual_seed(0))
    return tokens * mask, mask


def main(arguments: Arguments) -> None:
    """Times the encoders and writes the results."""
    quieten()
    torch.set_num_threads(arguments.threads)
    directory = find_model(arguments.model)
    converted = load_encoder(directory).float().base_model
    models: dict[str, Any] = {
        "transformers": AutoModel.from_pretrained(directory, dtype="float32"),
        "converted": converted,
    }
    for name, int8 in OPTIMIZED.items():
        models[f"optimized-{name}"] = optimize_for_inference(converted, "float32", int8)  # pyright: ignore
    harness = Benchmark("converted", arguments, ["transformers"])
    cases: list[Case] = [{"workload": workload} for workload in WORKLOADS]
    for case in harness.remaining(cases):
        tokens, mask = batch(case["workload"], converted.config.vocab_size)  # pyright: ignore
        with torch.inference_mode():
            expected = models["transformers"](tokens, attention_mask=mask).last_hidden_state[mask.bool()]
        contenders = [
            Contender(
                name,
                functools.partial(set_up, model, tokens, mask, expected),
                name.rpartition("-")[2] if "-" in name else "float32",
            )
            for name, model in models.items()
        ]
        harness.measure(case, contenders, "transformers", burst=3)
    harness.finish([f"{harness.described()} Threads: {arguments.threads}.", table(harness, list(models))])


def set_up(model: Any, tokens: torch.Tensor, mask: torch.Tensor, expected: torch.Tensor) -> Ready:
    """The contender `model`; its error is that of the hidden states of real tokens."""

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return model(tokens, attention_mask=mask).last_hidden_state

    return Ready(call, lambda output: ((output[mask.bool()] - expected).norm() / expected.norm()).item())


def table(harness: Benchmark, names: list[str]) -> str:
    """Median milliseconds, and how many times faster than transformers."""
    rows = []
    for workload in WORKLOADS:
        found = harness.select(workload=workload)
        base = found["transformers"]["median"]
        medians = [found[name]["median"] if name in found else None for name in names]
        rows.append(
            [workload, *("-" if time is None else f"{1e3 * time:.1f} ({base / time:.2f}x)" for time in medians)]
        )
    errors = [[r["error"] for r in harness.results if r["name"] == name] for name in names]
    rows.append(["relative error", *(f"{max(each):.0e}" if each else "-" for each in errors)])
    return markdown_table(["workload", *names], rows)


if __name__ == "__main__":
    try:
        main(parse_arguments(Arguments, sys.argv[1:], "time_converted.py", "Times a converted encoder."))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
