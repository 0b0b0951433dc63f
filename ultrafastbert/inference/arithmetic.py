"""The arithmetic of an optimised model: of the kinds that are exact enough, the fastest on this machine.

The instruction sets of a processor do not tell which arithmetic is fast on it: some have instructions for bfloat16 and
are slower with them. So the candidates are timed. Times depend on the sizes of a model and not on its weights, and are
kept in a file for all models of these sizes. Errors depend on the weights, and are computed each time.
"""

import functools
import hashlib
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ultrafastbert.modeling_ultrafastbert import UltraFastBertModel
from ultrafastbert.ops import native
from ultrafastbert.utils.files import CHECKSUM, is_intact, seal, write_atomically
from ultrafastbert.utils.timing import take_turns

Shape = tuple[int, int]
"""Sequences and tokens in each."""
SHAPES: tuple[Shape, ...] = ((1, 16), (1, 128), (8, 128))
TOLERANCE = 0.05
HOPELESS = 2.0
"""Candidates that take this many times as long as the fastest one are not timed with longer inputs."""


class Arithmetic(NamedTuple):
    """What an optimised model computes in.

    Attributes:
        dtype: of weights and products.
        int8: whether linear layers multiply in int8.
    """

    dtype: torch.dtype
    int8: bool

    def __str__(self) -> str:
        return str(self.dtype).removeprefix("torch.") + (" with int8" if self.int8 else "")


EXACT = Arithmetic(torch.float32, int8=False)
Times = dict[str, list[float]]
"""Seconds of a call by arithmetic, for each shape from the smallest on; fewer for those that were found hopeless."""


def choose(
    encoder: UltraFastBertModel,
    candidates: Sequence[Arithmetic],
    optimize: Callable[[UltraFastBertModel, Arithmetic], nn.Module],
    tolerance: float = TOLERANCE,
    shapes: Sequence[Shape] = SHAPES,
    verbose: bool = False,
) -> tuple[Arithmetic, str]:
    """The fastest candidate whose error is at most `tolerance`; if there is none, the most exact one.

    A candidate's time is the geometric mean over the shapes. Its error is the norm of the difference between its last
    hidden states and those in float32, relative to the norm of the latter, for 4 sequences of 64 random tokens.

    Args:
        encoder: on the CPU.
        candidates: at least one.
        optimize: makes an optimised copy of an encoder that computes in an arithmetic.
        tolerance: largest error.
        shapes: that are timed.
        verbose: say on standard error if times have to be measured first, which takes seconds.

    Returns:
        the arithmetic, and a phrase that says how it compares with the others.
    """
    optimized = functools.cache(functools.partial(optimize, encoder))
    shapes = sorted(set(shapes), key=math.prod)
    file = _file(encoder, candidates, shapes)
    times = _read(file)
    if times is None:
        if verbose:
            names = ", ".join(map(str, candidates))
            print(f"optimize_for_inference: timing {names}, once for this size of model ...", file=sys.stderr)
        calls = {str(candidate): functools.partial(_encode, optimized, candidate) for candidate in candidates}
        times = measure(calls, [_tokens(encoder, shape) for shape in shapes])
        _write(file, times)

    def error(candidate: Arithmetic) -> float:
        if candidate == EXACT:
            return 0.0
        tokens = _tokens(encoder, (4, 64))
        output, expected = _encode(optimized, candidate, tokens), _encode(optimized, EXACT, tokens)
        relative = ((output - expected).norm() / expected.norm()).item()
        return math.inf if math.isnan(relative) else relative

    return select(candidates, times, error, tolerance)


def measure(calls: Mapping[str, Callable[[Tensor], object]], inputs: Sequence[Tensor]) -> Times:
    """Times the calls on each of the inputs; those that are found hopeless with one do not get the next ones."""
    times: Times = {name: [] for name in calls}
    remaining = list(calls)
    for tokens in inputs:
        turns = take_turns({name: functools.partial(calls[name], tokens) for name in remaining}, seconds=0.1)
        for name, seconds in turns.items():
            times[name].append(statistics.median(seconds))
        fastest = min(statistics.geometric_mean(times[name]) for name in remaining)
        remaining = [name for name in remaining if statistics.geometric_mean(times[name]) < HOPELESS * fastest]
    return times


def select(
    candidates: Sequence[Arithmetic], times: Times, error: Callable[[Arithmetic], float], tolerance: float
) -> tuple[Arithmetic, str]:
    """The first candidate in the order of speed whose error is at most `tolerance`, as `choose` returns it."""

    def slowness(candidate: Arithmetic) -> tuple[int, float]:
        seconds = times[str(candidate)]
        return -len(seconds), statistics.geometric_mean(seconds)  # the hopeless ones last

    ranked = sorted(candidates, key=slowness)
    errors: dict[Arithmetic, float] = {}
    for candidate in ranked:
        errors[candidate] = error(candidate)
        if errors[candidate] <= tolerance:
            break
    chosen = min(errors, key=lambda candidate: errors[candidate])  # the last one, if it is exact enough
    why = "the fastest" if errors[chosen] <= tolerance else "the most exact, because none is,"
    rows = [f"{one} {_describe(times[str(one)], times[str(chosen)], errors.get(one))}" for one in ranked]
    return chosen, f"{chosen} is {why} within an error of {tolerance:.1%} ({', '.join(rows)})"


def _describe(seconds: list[float], of_chosen: list[float], error: float | None) -> str:
    """The time relative to the chosen one's, over the shapes that both were timed with, and the error if known."""
    shapes = min(len(seconds), len(of_chosen))
    ratio = statistics.geometric_mean(seconds[:shapes]) / statistics.geometric_mean(of_chosen[:shapes])
    return f"{ratio:.2f}x the time" + (f" and {error:.1%}" if error else "")


@torch.inference_mode()
def _encode(optimized: Callable[[Arithmetic], nn.Module], arithmetic: Arithmetic, tokens: Tensor) -> Tensor:
    return optimized(arithmetic)(tokens).last_hidden_state.float()


def _tokens(encoder: UltraFastBertModel, shape: Shape) -> Tensor:
    """Random tokens, `(sequences, length)` int64, as many as the encoder has positions at most."""
    config, (sequences, length) = encoder.config, shape
    size = sequences, min(length, config.max_position_embeddings)
    return torch.randint(config.vocab_size, size, generator=torch.Generator().manual_seed(0))


def _file(encoder: UltraFastBertModel, candidates: Sequence[Arithmetic], shapes: Sequence[Shape]) -> Path:
    """Where times are kept, in a directory of this processor, PyTorch and these native operators."""
    # imported here, so that `python -m ultrafastbert.ops.native.build` does not find its module already imported
    from ultrafastbert.ops.native import build

    weights = [(name, *weight.shape) for name, weight in encoder.named_parameters()]
    key = json.dumps([weights, list(map(str, candidates)), shapes, native.available(), torch.get_num_threads()])
    return build.build_directory() / f"arithmetic-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _read(file: Path) -> Times | None:
    """The times in a file, or None if there is no file or it is damaged."""
    with suppress(OSError, ValueError):
        content = json.loads(file.read_text(encoding="utf-8"))
        if is_intact(content) and CHECKSUM in content:
            return content["times"]
    return None


def _write(file: Path, times: Times) -> None:
    with suppress(OSError):  # without the file, the next process measures again
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(seal({"times": times}), indent=1))
