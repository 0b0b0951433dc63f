"""A fine-tuning run learns, depends on nothing but its seed and data, and fails with a message."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
)

from tests.finetuning.helpers import task_data
from ultrafastbert.finetuning.arguments import Recipe
from ultrafastbert.finetuning.trainer import Diverged, encode_task, finetune, load_model, load_tokenizer
from ultrafastbert.utils.errors import UserError

LEARNING = {"epochs": 6, "lr": 3e-3, "max_length": 16}


def run(model_name, data, seed=0, check=lambda: None, held_out_only=False, **recipe):
    recipe = Recipe(**(LEARNING | recipe))
    encoded = encode_task(data, load_tokenizer(model_name, recipe.max_length), recipe.max_length)
    model, _ = load_model(model_name, data.task, recipe, seed)
    return model, finetune(
        model, encoded, recipe, recipe.lr, seed, torch.device("cpu"), check, held_out_only=held_out_only
    )


def plain(result):
    return {name: value for name, value in result.items() if name not in ("seconds", "predictions")}


def test_a_run_learns_to_classify(small_model):
    data = task_data()
    model, result = run(small_model, data)
    assert result["evaluations"]["easy"]["values"]["accuracy"] == 1 and not result["evaluations"]["easy"]["warnings"]
    assert result["train_loss"][-1] < min(0.1, result["train_loss"][0])
    assert result["epochs"] == 6 and result["steps"] == 6 * 96 // 16
    first_words = [text.split()[0] for (text,) in data.tests[0].texts]
    assert [f"w{label}" for label in result["predictions"]["easy"]] == first_words
    assert model.config.id2label == {0: "no", 1: "yes"}


def test_a_run_learns_to_predict_numbers(small_model):
    data = task_data(regression=True)
    _, result = run(small_model, data, epochs=16)
    assert result["evaluations"]["easy"]["values"]["pearson"] > 0.95
    assert result["predictions"]["easy"].dtype == np.float32


def test_a_seed_decides_everything(small_model):
    (_, first), (_, again), (_, other) = (run(small_model, task_data(), seed, epochs=1) for seed in (0, 0, 1))
    assert plain(first) == plain(again) != plain(other)
    assert np.array_equal(first["predictions"]["easy"], again["predictions"]["easy"])


@pytest.mark.parametrize("recipe", [{}, {"early_stopping": 1}])
def test_the_development_set_decides_nothing(small_model, recipe):
    data, changed = task_data(), task_data()
    changed.evaluations[0].labels = [1 - label for label in changed.evaluations[0].labels]
    (model, result), (other_model, other) = (run(small_model, task, epochs=2, **recipe) for task in (data, changed))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, other_model.state_dict()[name]), name
    values = [outcome["evaluations"]["easy"]["values"]["accuracy"] for outcome in (result, other)]
    assert values[0] == pytest.approx(1 - values[1])


def test_early_stopping_uses_the_best_epoch(small_model):
    """At a learning rate of almost zero no epoch is better than the first."""
    _, result = run(small_model, task_data(), early_stopping=2, lr=1e-12, epochs=9)
    assert result["epochs"] == 3
    _, result = run(small_model, task_data(), early_stopping=2, epochs=9)
    assert result["held_out"] == 1 and result["evaluations"]["easy"]["values"]["accuracy"] == 1


def test_a_trial_evaluates_only_held_out_examples(small_model):
    _, result = run(small_model, task_data(), held_out_only=True, holdout=0.25)
    assert result["held_out"] == 1 and "evaluations" not in result and "predictions" not in result
    assert result["steps"] == 6 * -(-72 // 16)


def test_a_run_that_diverges_has_no_score(small_model):
    with pytest.raises(Diverged, match="loss|output"):
        run(small_model, task_data(), lr=1e30)


def test_an_exception_of_check_stops_the_run(small_model):
    calls = iter(range(100))

    def check():
        if next(calls) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small_model, task_data(), check=check)
    assert next(calls) == 8


def test_the_recipe_sets_every_dropout(small_model):
    task = task_data().task
    for dropout, expected in ((0.3, (0.3, 0.3, 0.3)), (None, (0.0, 0.0, 0.1))):
        config = load_model(small_model, task, Recipe(dropout=dropout), 0)[0].config
        assert (
            config.hidden_dropout_prob,
            config.attention_probs_dropout_prob,
            config.classifier_dropout,
        ) == expected


def test_the_recipe_chooses_what_the_head_sees(small_model):
    task = task_data().task
    for pooling, expected in (("mean", "mean"), ("cls", "cls"), (None, "cls")):
        model = load_model(small_model, task, Recipe(pooling=pooling), 0)[0]
        assert model.config.classifier_pooling == model.pooler.pooling == expected


def test_a_model_without_a_choice_of_pooling_is_refused(tmp_path):
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForSequenceClassification(BertConfig(**sizes, intermediate_size=16)).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"model .*: pooling is mean; it should be null, because the configuration \(bert\) has no"
    ):
        load_model(str(tmp_path), task_data().task, Recipe(pooling="mean"), 0)


def test_pretrained_weights_are_kept_or_ignored(small_model):
    task, name = task_data().task, "model.embeddings.word_embeddings.weight"
    pretrained = load_file(f"{small_model}/model.safetensors")[name]
    model, new = load_model(small_model, task, Recipe(), 0)
    assert torch.equal(model.state_dict()[name], pretrained)
    assert {key.split(".")[0] for key in new} == {"pooler", "classifier"}
    random, new = load_model(small_model, task, Recipe(random_init=True), 0)
    assert new == ["all weights"] and random.config.to_dict() == model.config.to_dict()
    assert not torch.equal(random.state_dict()[name], pretrained)


def test_bert_and_the_head_of_another_task(small_model, tmp_path):
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(small_model).save_pretrained(tmp_path)
    _, result = run(str(tmp_path), task_data(), epochs=12)
    assert result["evaluations"]["easy"]["values"]["accuracy"] > 0.9

    three = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    three.save_pretrained(tmp_path / "three")
    AutoTokenizer.from_pretrained(small_model).save_pretrained(tmp_path / "three")
    _, new = load_model(str(tmp_path / "three"), task_data().task, Recipe(), 0)
    assert new == ["classifier.bias", "classifier.weight"]


def test_an_incomplete_model_is_an_error(small_model, tmp_path):
    AutoTokenizer.from_pretrained(small_model).save_pretrained(tmp_path)
    shutil.copy(f"{small_model}/config.json", tmp_path)
    weights = load_file(f"{small_model}/model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "feedforward" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"its checkpoint lacks \d+ weights of the encoder \(model.layers.0.feedf"):
        load_model(str(tmp_path), task_data().task, Recipe(), 0)


def test_errors_name_the_model(small_model, tmp_path):
    with pytest.raises(UserError, match="model .*nothing: cannot load a model with a tokenizer"):
        load_tokenizer(str(tmp_path / "nothing"), 16)
    with pytest.raises(UserError, match="max_length is 33; it should be at most 32"):
        load_tokenizer(small_model, 33)
