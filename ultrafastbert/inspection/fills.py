"""What the models of a run fill into the mask of sentences: those of its checkpoints and its final one.

A run keeps its newest checkpoints only (`train.keep_checkpoints`), so earlier models cannot be asked.
"""

from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ultrafastbert.inspection.loading import load_checkpoint
from ultrafastbert.runs.checkpoints import numbered_checkpoints, read_record, step_of
from ultrafastbert.runs.directory import CHECKPOINTS, FINAL, TRAINING_RECORD
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.transformers import quiet_transformers

MASK = "[MASK]"


def fill_over_training(run: Path, texts: list[str], top: int = 3, most: int = 8) -> tuple[list[dict], list[str]]:
    """Fills the mask of each text with the models that a run has.

    Args:
        run: directory of the run.
        texts: with one `[MASK]` each.
        top: how many tokens to give for each text.
        most: how many models to load; of more, that many evenly spaced ones, the last included.

    Returns:
        A dict for each model in the order of training: `model`, its name in the run, `step`, and `fills`, a list for
        each text of `[token, probability]`, the most probable first; and remarks on models that are not among them.
    """
    models = [(step_of(path), path) for path in numbered_checkpoints(run / CHECKPOINTS)]
    final, remarks = run / FINAL, []
    record = read_record(final, TRAINING_RECORD) if final.is_dir() else None
    if record is not None:  # the checkpoint of the same step has the same weights
        models = [*((step, path) for step, path in models if step != record["step"]), (record["step"], final)]
        models.sort(key=lambda model: model[0])
    if len(models) > most:
        last = len(models) - 1
        chosen = sorted({round(last * index / max(1, most - 1)) for index in range(most)} if most > 1 else {last})
        remarks.append(f"{len(chosen)} of {len(models)} models were asked, evenly spaced.")
        models = [models[index] for index in chosen]
    found = []
    for step, path in models:
        try:
            model, tokenizer = _load(path)
            fills = [_fill(model, tokenizer, text, top) for text in texts]
            found.append({"model": str(path.relative_to(run)), "step": step, "fills": fills})
        except (UserError, OSError) as error:  # damaged, or removed by a run that has written a newer one
            remarks.append(f"{path.relative_to(run)} could not be asked: {error}")
    return found, remarks


def _load(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with quiet_transformers():
        if path.name != FINAL:
            model, tokenizer, _ = load_checkpoint(path)
        else:
            try:
                model = AutoModelForMaskedLM.from_pretrained(path)
                tokenizer = AutoTokenizer.from_pretrained(path)
            except Exception as error:  # of transformers, safetensors, tokenizers
                raise UserError(f"{error}") from error
    return model.eval(), tokenizer


@torch.no_grad()
def _fill(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, top: int) -> list[list]:
    """The most probable tokens for the mask and their probabilities; the text is cut at the model's last position."""
    if tokenizer.mask_token is None:
        raise UserError("its tokenizer has no token for masks")
    text = text.replace(MASK, str(tokenizer.mask_token))
    longest = model.config.max_position_embeddings
    inputs = tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
    places = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten()
    if len(places) != 1:
        raise UserError(f"the mask of {text!r} is not within its {longest} positions")
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    probabilities = logits[0, places[0]].float().softmax(-1)
    values, ids = probabilities.topk(min(top, len(probabilities)))
    return [[tokenizer.decode([id]), value] for id, value in zip(ids.tolist(), values.tolist(), strict=True)]
