"""Compares models of sentence-transformers: similarity of sentences, retrieval, closeness to the first model, speed.

    python scripts/evaluate_sentences.py --models '[TEACHER, STUDENT, ...]' --sts STS-B/dev.tsv --documents leads.jsonl

Models of this package are optimised in float32 before; others run as they are. Latencies are medians of calls of the
encoder, whose contenders take turns.
"""

import functools
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from torch import Tensor

from ultrafastbert import optimize_for_inference
from ultrafastbert.benchmarks.encoder_contenders import inputs
from ultrafastbert.cli import parse_arguments
from ultrafastbert.finetuning.data.tsv import read_tsv
from ultrafastbert.modeling_ultrafastbert import UltraFastBertPreTrainedModel
from ultrafastbert.runs.environment import environment
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import write_atomically
from ultrafastbert.utils.tables import markdown_table
from ultrafastbert.utils.timing import take_turns
from ultrafastbert.utils.validation import NOT_EMPTY, POSITIVE, check_fields

WORKLOADS = ("1x16", "1x128", "8x128")


@dataclass
class EvaluateArguments:
    """What is compared, and on what."""

    models: list[str] = field(default_factory=list)
    """Directories or Hub ids of models of sentence-transformers; the others are compared with the first."""
    sts: str = ""
    """A table of pairs with the columns sentence1, sentence2 and score (.tsv), such as GLUE's STS-B."""
    documents: str = ""
    """Objects with the fields title and text (.jsonl). A title should find its text among all of them."""
    threads: int = 1
    """Threads of PyTorch."""
    seconds: float = 5.0
    """How long each model is timed with each workload. [seconds]"""
    output_dir: str = "out/sentences"
    """Where sentences.md and sentences.json are written."""

    def __post_init__(self):
        check_fields(self, NOT_EMPTY, "models", "sts", "documents", "output_dir")
        check_fields(self, POSITIVE, "threads", "seconds")


def load(name: str) -> SentenceTransformer:
    """The model, optimised if its encoder is one of this package."""
    try:
        model = SentenceTransformer(name, device="cpu").eval()
    except (OSError, ValueError) as error:
        raise UserError(f"model {name} cannot be loaded: {error}") from error
    ours = any(isinstance(module, UltraFastBertPreTrainedModel) for module in model.modules())
    return optimize_for_inference(model, dtype="float32", int8=False, verbose=False) if ours else model


def embed(model: SentenceTransformer, texts: list[str]) -> Tensor:
    """Vectors of length 1, `(texts, width)`."""
    return model.encode(texts, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)


def read_pairs(path: Path) -> tuple[list[str], list[str], list[float]]:
    """First sentences, second sentences and their scores."""
    rows = list(read_tsv(path, ("sentence1", "sentence2", "score")))
    try:
        scores = [float(score) for _, (_, _, score) in rows]
    except ValueError as error:
        raise UserError(f"sts {path} should have numbers in the column score: {error}") from error
    return [first for _, (first, _, _) in rows], [second for _, (_, second, _) in rows], scores


def read_documents(path: Path) -> tuple[list[str], list[str]]:
    """Titles and texts."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [line["title"] for line in lines], [line["text"] for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"documents {path} should have objects with the fields title and text: {error!r}") from error


def quality(vectors: dict[str, Tensor], reference: dict[str, Tensor], scores: list[float]) -> dict[str, float]:
    """Cosine to the reference on all texts, rank correlation with the scores, recall at 1 and mean reciprocal rank."""
    cosines = [(vectors[name] * reference[name]).sum(1) for name in vectors]
    similar: Any = spearmanr((vectors["first"] * vectors["second"]).sum(1).numpy(), scores)
    similarities = vectors["titles"] @ vectors["texts"].T  # (documents, documents)
    rank = (similarities > similarities.diag()[:, None]).sum(1) + 1
    return {
        "cosine": torch.cat(cosines).mean().item(),
        "spearman": float(similar.statistic),
        "recall@1": (rank == 1).float().mean().item(),
        "mrr": (1 / rank).mean().item(),
    }


def latencies(models: dict[str, SentenceTransformer], seconds: float) -> dict[str, dict[str, float]]:
    """Median seconds of a call of each encoder, by workload and model."""
    encoders: dict[str, Any] = {name: model[0].model for name, model in models.items()}  # pyright: ignore
    vocabulary = min(encoder.config.vocab_size for encoder in encoders.values())
    found = {}
    for workload in WORKLOADS:
        tokens, mask = inputs(workload, vocabulary)
        calls: dict[str, Callable[[], object]] = {
            name: functools.partial(run, encoder, tokens, mask) for name, encoder in encoders.items()
        }
        times = take_turns(calls, seconds)
        found[workload] = {name: statistics.median(each) for name, each in times.items()}
    return found


@torch.inference_mode()
def run(encoder: Any, tokens: Tensor, mask: Tensor) -> None:
    """One call."""
    encoder(input_ids=tokens, attention_mask=mask)


def main(arguments: EvaluateArguments) -> None:
    """Evaluates all models, prints a table and writes it.

    Raises:
        UserError: a model or file that cannot be used.
    """
    torch.set_num_threads(arguments.threads)
    first, second, scores = read_pairs(Path(arguments.sts))
    titles, texts = read_documents(Path(arguments.documents))
    parts = {"first": first, "second": second, "titles": titles, "texts": texts}
    models = {name: load(name) for name in arguments.models}
    reference: dict[str, Tensor] = {}
    results = {}
    for name, model in models.items():
        vectors = {part: embed(model, lines) for part, lines in parts.items()}
        reference = reference or vectors
        results[name] = quality(vectors, reference, scores)
    for workload, medians in latencies(models, arguments.seconds).items():
        for name, median in medians.items():
            results[name][workload] = median
    rows = [
        (
            name,
            f"{values['cosine']:.3f}",
            *(f"{100 * values[measure]:.1f}" for measure in ("spearman", "recall@1")),
            f"{values['mrr']:.3f}",
            *(f"{1e3 * values[workload]:.1f}" for workload in WORKLOADS),
        )
        for name, values in results.items()
    ]
    columns = ("model", "cosine to the first", "Spearman", "recall@1", "MRR", *(f"{name}, ms" for name in WORKLOADS))
    output, table = Path(arguments.output_dir), markdown_table(columns, rows)
    output.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment(torch.device("cpu"), "transformers"), "results": results}
    write_atomically(output / "sentences.json", json.dumps(content, indent=1) + "\n")
    write_atomically(output / "sentences.md", table + "\n")
    print(f"{table}\n\nwritten: {output / 'sentences.md'}, {output / 'sentences.json'}")


if __name__ == "__main__":
    try:
        description = "Compares models of sentence-transformers."
        main(parse_arguments(EvaluateArguments, sys.argv[1:], "evaluate_sentences.py", description))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
