"""The comparison with transformers' BERT under Trainer trains on the same data and validates at the same masks."""

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput

from tests.scripts.helpers import load_script
from ultrafastbert.benchmarks.bert import bert_config
from ultrafastbert.pretraining.data.prepare import prepare
from ultrafastbert.pretraining.evaluation import evaluate
from ultrafastbert.runs.reporter import read_metrics
from ultrafastbert.utils.errors import UserError


@pytest.fixture
def script():
    return load_script("pretrain_bert")


def arguments_of(script, make_arguments, **train):
    given = make_arguments(**train)
    return script.BertArguments(given.model, given.data, given.train, given.output_dir)


def test_bert_trains_until_its_time_is_over_and_is_saved(script, make_arguments, tmp_path):
    arguments = arguments_of(script, make_arguments, budget_hours=3 / 3600)
    script.main(arguments)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert lines[-1]["budget_fraction"] == 1 and 1 <= len(lines) <= script.EVALUATIONS
    assert lines[-1]["tokens"] == 8 * 32 * lines[-1]["step"]
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "final")
    assert model.config.model_type == "bert" and model.config.intermediate_size == 4 * model.config.hidden_size
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "final").mask_token == "[MASK]"

    loss, accuracy = script.Clock(arguments, prepare(arguments.data), 1.0).evaluate(model)
    assert (loss, accuracy) == pytest.approx((lines[-1]["validation_loss"], lines[-1]["validation_accuracy"]))
    with pytest.raises(UserError, match="is of an earlier run"):
        script.main(arguments)


def test_it_validates_as_pretraining_does(script, make_arguments):
    """BERT gets the same loss and accuracy as from the evaluation of `ultrafastbert pretrain`."""
    arguments = arguments_of(script, make_arguments, budget_hours=1, eval_mask_probability=0.15)
    data = prepare(arguments.data)
    clock = script.Clock(arguments, data, 1.0)
    config = arguments.model.build_config(data.vocab_size, data.sequence_length)
    bert = BertForMaskedLM(bert_config(config, initializer_range=0.3))

    class AtMasks(torch.nn.Module):
        """BERT with the arguments that our evaluation gives to a model."""

        def __init__(self):
            super().__init__()
            self.bert = bert

        def forward(self, input_ids, masked_positions):
            logits = self.bert(input_ids).logits
            at_masks = [of_text[places] for of_text, places in zip(logits, masked_positions, strict=True)]
            return MaskedLMOutput(logits=torch.stack(at_masks))

    class Step:
        """What `evaluate` uses of a training step."""

        model, accelerator, autocast = AtMasks(), Accelerator(cpu=True), staticmethod(torch.no_grad)

    expected = evaluate(Step(), clock.batches.validation, clock.batches.validation_masker, clock.size)
    assert clock.evaluate(bert) == pytest.approx((expected.loss, expected.accuracy))
    assert bert.training


def test_a_budget_of_steps_is_refused(script, make_arguments):
    with pytest.raises(UserError, match="train.budget_hours is None"):
        script.main(arguments_of(script, make_arguments, budget_hours=None))
