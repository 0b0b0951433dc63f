"""The model card, README.md of a model on the Hub: what its run recorded, and what this machine measures.

What no record states is called unknown. Paths of the machine that trained the model are cut to the names of files.
"""

from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import yaml
from transformers import PreTrainedModel

from ultrafastbert import (
    AUTO_CLASSES,
    UltraFastBertForMaskedLM,
    UltraFastBertForMultipleChoice,
    UltraFastBertForQuestionAnswering,
    UltraFastBertForSequenceClassification,
    UltraFastBertForTokenClassification,
    UltraFastBertModel,
    optimize_for_inference,
)
from ultrafastbert.runs.directory import CONFIG, TRAINING_RECORD
from ultrafastbert.runs.environment import environment
from ultrafastbert.utils.progress import duration
from ultrafastbert.utils.sizes import DenseSize, NoSize, TreeSize
from ultrafastbert.utils.tables import markdown_table
from ultrafastbert.utils.timing import take_turns

TASKS = {
    UltraFastBertModel: "feature-extraction",
    UltraFastBertForMaskedLM: "fill-mask",
    UltraFastBertForSequenceClassification: "text-classification",
    UltraFastBertForTokenClassification: "token-classification",
    UltraFastBertForQuestionAnswering: "question-answering",
    UltraFastBertForMultipleChoice: "multiple-choice",
}
"""What the Hub calls the task of a head."""
FINETUNING_RECORD = "result.json"
"""What `ultrafastbert finetune` writes beside the directory of a fine-tuned model."""
WORKLOADS = ((1, 16), (1, 128), (8, 128))
"""Sequences and tokens of a batch whose time is measured."""
SECONDS = 0.5
"""How long each model is timed with each batch."""

CITATION = """@article{belcak2023exponentially,
  title = {Exponentially Faster Language Modelling},
  author = {Belcak, Peter and Wattenhofer, Roger},
  journal = {arXiv preprint arXiv:2311.10770},
  year = {2023}
}
@article{geiping2022cramming,
  title = {Cramming: Training a Language Model on a Single {GPU} in One Day},
  author = {Geiping, Jonas and Goldstein, Tom},
  journal = {arXiv preprint arXiv:2212.14034},
  year = {2022}
}"""


class Records(NamedTuple):
    """What the runs that made a model wrote; each is empty if it is not there.

    Attributes:
        pretraining: budget spent, and the last validation; beside the weights.
        recipe: the options of the run, in its directory, the parent of the model's.
        finetuning: the result of fine-tuning, in the parent of the model's directory.
    """

    pretraining: dict[str, Any]
    recipe: dict[str, Any]
    finetuning: dict[str, Any]


def read_records(source: Path) -> Records:
    """The records of the model in the directory `source`; files that cannot be read count as absent."""
    source = source.resolve()
    pretraining = _read(source / TRAINING_RECORD)
    recipe = _read(source.parent / CONFIG) if pretraining else {}
    finetuning = _read(source.parent / FINETUNING_RECORD) if source.name == "model" else {}
    return Records(pretraining, recipe, finetuning)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def write_card(directory: Path, model: PreTrainedModel, source: Path, name: str) -> None:
    """Writes README.md.

    Args:
        directory: of the export.
        model: in evaluation mode; its speed is measured.
        source: the directory that the model was loaded from.
        name: that the model is loaded by.
    """
    card = render_card(model, read_records(source), name, measure_speed(model))
    (directory / "README.md").write_text(card, encoding="utf-8")


def render_card(model: PreTrainedModel, records: Records, name: str, speed: str) -> str:
    """The text of the card; `speed` is its section on speed."""
    auto_class = {model_class: auto_class for auto_class, model_class in AUTO_CLASSES.items()}[type(model)].__name__
    metadata = {
        "library_name": "transformers",
        "pipeline_tag": TASKS[type(model)],
        "tags": ["ultrafastbert", "fast-feedforward", "custom_code"],
    }
    sections = {
        "Use": _use(auto_class, name),
        "Data": _data(records),
        "Recipe and budget": _recipe(records),
        "Quality": _quality(records),
        "Speed": speed,
        "Limits": _limits(model, records),
        "Citation": f"```bibtex\n{CITATION}\n```",
    }
    head = f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n\n# {name.rpartition('/')[2]}\n\n{_what(model)}"
    return head + "".join(f"\n\n## {title}\n\n{text}" for title, text in sections.items()) + "\n"


def _what(model: PreTrainedModel) -> str:
    config = model.config
    if config.feedforward == "fff":
        size = TreeSize(config.fff_trees, config.fff_depth, config.fff_leaf_size)
        layers = f"fast feedforward trees of size {size}: {size.neurons:,} neurons, of which a token uses {size.used}"
    elif config.feedforward == "dense":
        layers = f"ordinary layers ({DenseSize(config.intermediate_size)})"
    else:
        layers = f"left away ({NoSize()})"
    return (
        f"An encoder of `ultrafastbert`, {type(model).__name__}: {config.num_hidden_layers} layers of width"
        f" {config.hidden_size}, {config.num_attention_heads} attention heads, {config.position_embedding} positions,"
        f" a vocabulary of {config.vocab_size:,} tokens, sequences of up to {config.max_position_embeddings} tokens,"
        f" {model.num_parameters():,} parameters. Its feedforward layers are {layers}."
    )


def _use(auto_class: str, name: str) -> str:
    return (
        "With `transformers` alone, in plain PyTorch; the code comes with the model:\n\n"
        f"```python\nfrom transformers import {auto_class}, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)\n'
        f'model = {auto_class}.from_pretrained("{name}", trust_remote_code=True)\n```\n\n'
        "With `pip install ultrafastbert`, without remote code, and with operators made for CPUs (see Speed):\n\n"
        f"```python\nimport ultrafastbert\nfrom transformers import {auto_class}\n\n"
        f'model = ultrafastbert.optimize_for_inference({auto_class}.from_pretrained("{name}"))\n```'
    )


def _data(records: Records) -> str:
    data = records.recipe.get("data", {})
    sources = data.get("source")
    if not sources:
        text = "What text the model was pretrained on is unknown: no record of it came with the model."
    else:
        sources = [Path(source).name or source for source in ([sources] if isinstance(sources, str) else sources)]
        text = f"Pretrained on: {', '.join(f'`{source}`' for source in sources)}."
        names = ("hub_config", "hub_revision", "max_texts", "deduplicate")
        options = {name: data[name] for name in names if data.get(name) is not None}
        text += f" Options: {_listed(options)}." if options else ""
    if fingerprint := records.pretraining.get("data_fingerprint"):
        text += f" Fingerprint of the prepared data: `{fingerprint}`."
    if records.finetuning:
        rows = records.finetuning.get("rows", {})
        text += f"\n\nFine-tuned on {records.finetuning.get('task', 'an unknown task')} ({_listed(rows)} examples)."
    return text


def _recipe(records: Records) -> str:
    spent, train = records.pretraining, records.recipe.get("train", {})
    parts = []
    if spent:
        spent_text = [
            f"{spent[key]:,} {word}" for key, word in (("step", "steps"), ("tokens", "tokens")) if key in spent
        ]
        spent_text += [f"{duration(spent['seconds'])} of wall-clock time"] if "seconds" in spent else []
        parts.append(f"Pretraining, by masked-language modelling, spent {', '.join(spent_text)}.")
    else:
        parts.append("How the model was pretrained is unknown: no record of it came with the model.")
    if train:
        names = ("optimizer", "lr", "muon_lr", "lr_peak", "batch_size", "batch_ramp", "weight_decay", "max_grad_norm")
        names += ("mask_probability", "final_mask_probability")
        chosen = {name: train[name] for name in names if train.get(name) is not None}
        parts.append(f"Options: {_listed(chosen)}, seed {records.recipe.get('seed', 'unknown')}.")
    if tuning := records.finetuning:
        settings = tuning.get("settings", {})
        chosen = {name: settings[name] for name in ("epochs", "batch_size", "max_length") if name in settings}
        chosen |= {name: tuning[name] for name in ("lr", "seed") if name in tuning}
        parts.append(f"Fine-tuning: {_listed(chosen)}.")
    return "\n\n".join(parts)


def _quality(records: Records) -> str:
    result = records.pretraining
    parts = []
    if "loss" in result and "accuracy" in result:
        parts.append(
            f"On held-out text of the pretraining data, masked tokens are predicted with an accuracy of"
            f" {result['accuracy']:.1%} and a loss of {result['loss']:.3f} nats"
            + (
                f" (always guessing by frequency: {result['unigram_entropy']:.3f})."
                if "unigram_entropy" in result
                else "."
            )
        )
        if used := result.get("leaves_used"):
            parts.append(
                f"Fraction of leaves that validation reached, by layer: {', '.join(f'{x:.2f}' for x in used)}."
            )
    for title, evaluation in records.finetuning.get("evaluations", {}).items():
        parts.append(f"{title}, development set: {_listed(evaluation['values'])} (one seed).")
    return "\n\n".join(parts) or "Unknown: no record of an evaluation came with the model."


def _limits(model: PreTrainedModel, records: Records) -> str:
    config = model.config
    limits = [
        "It may repeat prejudice of its training text; bias was not measured.",
        "A token whose pre-activation is within rounding of zero may take another path in another precision or on"
        " other hardware, so outputs agree only up to such tokens.",
    ]
    if config.position_embedding != "rotary":
        limits.append(f"Sequences longer than {config.max_position_embeddings} tokens are refused; truncate them.")
    if not records.finetuning:
        limits.append("It was not evaluated on any downstream task in the records that came with it.")
    if type(model) is UltraFastBertForMaskedLM and records.pretraining:
        limits.append("It was pretrained without [CLS] tokens; fine-tune it before you use the vector of [CLS].")
    limits.append("The license of the weights and the language of the text are not recorded.")
    return "\n".join(f"- {limit}" for limit in limits)


def measure_speed(model: PreTrainedModel) -> str:
    """Times the model on this machine's CPU, as it is and optimised; returns a table in Markdown."""
    encoder = model.base_model
    fast = optimize_for_inference(encoder, verbose=False)  # pyright: ignore[reportArgumentType]
    rows, generator = [], torch.Generator().manual_seed(0)
    for sequences, length in WORKLOADS:
        if length > model.config.max_position_embeddings:
            continue
        tokens = torch.randint(model.config.vocab_size, (sequences, length), generator=generator)
        with torch.inference_mode():
            times = take_turns({"plain": lambda: encoder(tokens), "fast": lambda: fast(tokens)}, SECONDS)  # noqa: B023
        rows.append((f"{sequences}x{length}", *(f"{1e3 * median(times[name]):.3g}" for name in ("plain", "fast"))))
    machine = environment("cpu", "transformers")
    device = machine.pop("device")
    versions = ", ".join(f"{name} {version}" for name, version in machine.items())
    if not rows:
        return "Not measured: the model takes no sequences of 16 tokens."
    table = markdown_table(("sequences x tokens", "float32", "after `optimize_for_inference`"), rows)
    return (
        "Milliseconds for a batch through the encoder (median),"
        f" {device}, {torch.get_num_threads()} threads, {versions};"
        f" measured with the package when the model was exported:\n\n{table}"
    )


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {f'{x:.4g}' if isinstance(x, float) else x}" for name, x in values.items())
