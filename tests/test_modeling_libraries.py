"""The models with other libraries: Auto classes, pipelines, Trainer, PEFT."""

import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments, pipeline

from ultrafastbert import (
    UltraFastBertConfig,
    UltraFastBertForMaskedLM,
    UltraFastBertForMultipleChoice,
    UltraFastBertForQuestionAnswering,
    UltraFastBertForSequenceClassification,
    UltraFastBertForTokenClassification,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "cat", "dog", "sat", "ran", "on", "mat"]


def tiny(**options):
    defaults = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 12,
        "fff_depth": 2,
        "classifier_hidden_size": 12,
        "initializer_range": 0.1,
    }
    return UltraFastBertConfig(**(defaults | options))


def make(model_class, **options):
    torch.manual_seed(0)
    return model_class(tiny(**options))


def tokenizer():
    words = {word: i for i, word in enumerate(WORDS)}
    fast = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=12,
    )


@pytest.fixture
def saved(tmp_path):
    """Saves a model with its tokenizer, returns the directory."""

    def save(model_class, **options):
        make(model_class, **options).save_pretrained(tmp_path)
        tokenizer().save_pretrained(tmp_path)
        return str(tmp_path)

    return save


# Auto classes and pipelines


@pytest.mark.parametrize(
    "model_class, auto",
    [
        (UltraFastBertForMaskedLM, "AutoModel"),
        (UltraFastBertForMaskedLM, "AutoModelForMaskedLM"),
        (UltraFastBertForMaskedLM, "AutoModelForPreTraining"),
        (UltraFastBertForSequenceClassification, "AutoModelForSequenceClassification"),
        (UltraFastBertForTokenClassification, "AutoModelForTokenClassification"),
        (UltraFastBertForQuestionAnswering, "AutoModelForQuestionAnswering"),
        (UltraFastBertForMultipleChoice, "AutoModelForMultipleChoice"),
    ],
)
def test_auto_classes(saved, model_class, auto):
    import transformers

    model = getattr(transformers, auto).from_pretrained(saved(model_class))
    assert type(model).__name__ == ("UltraFastBertModel" if auto == "AutoModel" else model_class.__name__)


def test_in_a_new_process(saved):
    """Importing the package is enough, and it does not import what only training needs."""
    program = """
import sys
import ultrafastbert
assert not {"datasets", "jsonargparse", "matplotlib"} & sys.modules.keys()
from transformers import AutoModelForMaskedLM, pipeline
directory = sys.argv[1]
print(type(AutoModelForMaskedLM.from_pretrained(directory)).__name__)
print(len(pipeline("fill-mask", directory)("the cat sat on the [MASK]")))
"""
    directory = saved(UltraFastBertForMaskedLM)
    result = subprocess.run([sys.executable, "-c", program, directory], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["UltraFastBertForMaskedLM", "5"]


def test_fill_mask_pipeline(saved):
    fill = pipeline("fill-mask", saved(UltraFastBertForMaskedLM), device="cpu")
    texts = ["the cat sat on the [MASK]", "a [MASK] ran"]
    alone = [fill(text) for text in texts]
    for answers in alone:
        assert len(answers) == 5 and all(answer["token_str"] in WORDS for answer in answers)
    together = fill(texts, batch_size=2)  # padded
    for one, other in zip(alone, together, strict=True):
        assert [answer["token"] for answer in one] == [answer["token"] for answer in other]


def test_text_classification_pipeline(saved):
    classify = pipeline("text-classification", saved(UltraFastBertForSequenceClassification), device="cpu", top_k=None)
    texts = ["the cat sat on the mat", "a dog ran"]
    for text, answer in zip(texts, classify(texts, batch_size=2), strict=True):
        assert {label["label"] for label in answer} == {"LABEL_0", "LABEL_1"}
        scores = {label["label"]: label["score"] for label in answer}
        assert sum(scores.values()) == pytest.approx(1)
        assert scores == pytest.approx({label["label"]: label["score"] for label in classify([text])[0]}, abs=1e-4)


def test_the_other_pipelines(saved):
    features = pipeline("feature-extraction", saved(UltraFastBertForMaskedLM), device="cpu")("a dog ran")
    assert torch.tensor(features).shape == (1, 5, 16)
    ner = pipeline("token-classification", saved(UltraFastBertForTokenClassification), device="cpu")("a dog ran")
    assert [word["word"] for word in ner] == ["a", "dog", "ran"]


# Trainer


def arguments(directory, **options):
    defaults = {
        "output_dir": str(directory),
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-2,
        "max_steps": 30,
    }
    return TrainingArguments(**(defaults | options))


def examples():
    """32 examples, 8 of them distinct, with the labels that the heads need; few enough to memorise."""
    words = torch.randint(5, len(WORDS), (8, 6), generator=torch.Generator().manual_seed(0))
    for example in words.repeat(4, 1):
        masked = example.clone()
        masked[3] = 4
        labels = torch.full_like(example, -100)
        labels[3] = example[3]
        yield {"input_ids": masked.tolist(), "labels": labels.tolist(), "class": int(example[0] < 9)}


def masked_lm_data():
    return [{key: example[key] for key in ("input_ids", "labels")} for example in examples()]


def class_data():
    return [{"input_ids": example["input_ids"], "labels": example["class"]} for example in examples()]


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("feedforward", ["fff", "dense"])
def test_trainer_lowers_the_loss(tmp_path, feedforward, gradient_checkpointing):
    model = make(
        UltraFastBertForMaskedLM,
        feedforward=feedforward,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    options = arguments(tmp_path, gradient_checkpointing=gradient_checkpointing)
    trainer = Trainer(model, options, train_dataset=masked_lm_data(), eval_dataset=masked_lm_data())
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.5 * before


def test_trainer_learns_to_classify(tmp_path):
    model = make(UltraFastBertForSequenceClassification, classifier_pooling="mean")
    trainer = Trainer(model, arguments(tmp_path), train_dataset=class_data(), eval_dataset=class_data())
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.5 * before
    trainer.save_model(tmp_path / "saved")
    loaded = UltraFastBertForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert loaded.config.problem_type == "single_label_classification"
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())


def question_data():
    return [{"input_ids": example["input_ids"], "start_positions": 1, "end_positions": 3} for example in examples()]


def choice_data():
    choices = list(examples())
    return [
        {"input_ids": [example["input_ids"], other["input_ids"]], "labels": example["class"]}
        for example, other in zip(choices, reversed(choices), strict=True)
    ]


@pytest.mark.parametrize(
    "model_class, data",
    [
        (UltraFastBertForMaskedLM, masked_lm_data),
        (UltraFastBertForTokenClassification, masked_lm_data),
        (UltraFastBertForSequenceClassification, class_data),
        (UltraFastBertForQuestionAnswering, question_data),
        (UltraFastBertForMultipleChoice, choice_data),
    ],
)
def test_gradient_accumulation_gives_the_same_step(tmp_path, model_class, data):
    """A step on 32 examples at once equals a step on 4 times 8 examples."""
    weights = []
    for steps in (1, 4):
        model = make(
            model_class,
            num_labels=2 if data is class_data else len(WORDS),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            classifier_dropout=0.0,
        )
        options = arguments(
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=32 // steps,
            gradient_accumulation_steps=steps,
            optim="sgd",
            learning_rate=1.0,
            max_grad_norm=0.0,
        )
        Trainer(model, options, train_dataset=data()).train()
        weights.append({name: tensor.detach() for name, tensor in model.named_parameters()})
    before = dict(make(model_class, num_labels=2 if data is class_data else len(WORDS)).named_parameters())
    assert any(not torch.equal(weights[0][name], before[name]) for name in before)
    torch.testing.assert_close(weights[1], weights[0], atol=1e-5, rtol=1e-4)


# PEFT


@pytest.mark.parametrize("targets", [["qkv_proj", "o_proj"], "all-linear"])
def test_lora(tmp_path, targets):
    peft = pytest.importorskip("peft")
    model = make(UltraFastBertForSequenceClassification)
    adapted = peft.get_peft_model(
        model,
        peft.LoraConfig(task_type="SEQ_CLS", target_modules=targets, r=2, modules_to_save=["pooler", "classifier"]),
    )
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert sum("lora" in name and "attention.qkv_proj" in name for name in trainable) == 4
    assert not any("feedforward" in name for name in trainable if targets != "all-linear")

    adapted.eval()  # without dropout, so that the loss is a function of the weights alone
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=0.01)
    batch = {"input_ids": torch.tensor([[2, 5, 6, 3], [2, 7, 8, 3]]), "labels": torch.tensor([0, 1])}
    first = adapted(**batch).loss
    for _ in range(5):
        optimizer.zero_grad()
        adapted(**batch).loss.backward()
        optimizer.step()
    assert adapted(**batch).loss < first

    adapted.save_pretrained(tmp_path)
    base = make(UltraFastBertForSequenceClassification)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(loaded(**batch).logits, adapted(**batch).logits)
    torch.testing.assert_close(adapted.merge_and_unload()(**batch).logits, loaded(**batch).logits)


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"fff_depth": 3, "fff_trees": 2}, ["feedforward.weight_in", "feedforward.weight_out"]),
        ({"fff_depth": 3, "fff_leaf_size": 4}, ["feedforward.leaf_weight_in", "feedforward.leaf_weight_out"]),
    ],
    ids=["trees", "leaves"],
)
def test_lora_on_trees(tmp_path, options, weights):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", target_parameters=weights, r=2)
    adapted = peft.get_peft_model(make(UltraFastBertForSequenceClassification, **options), config).eval()
    before = {name: parameter.clone() for name, parameter in adapted.named_parameters()}
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
    batch = {"input_ids": torch.tensor([[2, 5, 6, 3], [2, 7, 8, 3]]), "labels": torch.tensor([0, 1])}
    first = adapted(**batch).loss.item()
    for _ in range(5):
        optimizer.zero_grad()
        adapted(**batch).loss.backward()
        optimizer.step()
    assert adapted(**batch).loss < first
    changed = {name for name, parameter in adapted.named_parameters() if not torch.equal(parameter, before[name])}
    assert sum("feedforward" in name and "lora" in name for name in changed) == 2 * 2 * 2  # layers, weights, A and B
    assert all("lora" in name or "classifier" in name for name in changed)

    adapted.save_pretrained(tmp_path)
    base = make(UltraFastBertForSequenceClassification, **options)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    expected = adapted(**batch).logits
    torch.testing.assert_close(loaded(**batch).logits, expected)
    torch.testing.assert_close(loaded.merge_and_unload()(**batch).logits, expected, rtol=1e-4, atol=1e-4)
