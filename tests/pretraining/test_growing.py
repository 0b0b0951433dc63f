"""Trees with leaves grow once during pretraining, without a change of the function."""

import pytest
import torch
from accelerate import Accelerator

from ultrafastbert import HardFFF, UltraFastBertForMaskedLM
from ultrafastbert.pretraining.data.batches import MaskedBatches
from ultrafastbert.pretraining.data.prepare import prepare
from ultrafastbert.pretraining.growing import grow_from_batches
from ultrafastbert.pretraining.step import TrainingStep
from ultrafastbert.pretraining.trainer import pretrain
from ultrafastbert.runs.reporter import read_metrics


@pytest.fixture
def training(make_arguments):
    """A model with trees of 8 leaves, after a few steps, and its batches."""

    def make(fff="1x3x4"):
        torch.manual_seed(0)
        arguments = make_arguments(fff=fff, max_steps=9)
        data = prepare(arguments.data)
        model = UltraFastBertForMaskedLM(arguments.model.build_config(data.vocab_size, data.sequence_length))
        step = TrainingStep(model, arguments.train, Accelerator(cpu=True), in_bf16=False)
        batches = MaskedBatches(arguments, data, torch.device("cpu"))
        for place in range(3):
            step.update(step.accumulate(batches.read(4 * place, 0.25)), lr=0.01)
        return step, batches

    return make


def trees(step):
    return [module for module in step.model.modules() if isinstance(module, HardFFF)]


def test_growing_changes_decisions_and_no_output(training):
    step, batches = training()
    batch = batches.read(100, 0.25)
    before = step.loss(batch).item()
    assert len(grow_from_batches(step, batches, 12, 0.25)) == 2
    assert step.model.training
    assert step.loss(batch).item() == pytest.approx(before, rel=1e-6)
    for tree in trees(step):
        assert tree.is_split
        for name, parameter in tree.named_parameters():
            if name.startswith("leaf_"):
                assert (parameter == parameter[0]).all()
                for optimizer in step.optimizers:
                    for average in (optimizer.state[parameter][key] for key in ("exp_avg", "exp_avg_sq")):
                        assert average.any() and (average == average[0]).all()


def test_leaves_differ_after_further_training(training):
    step, batches = training()
    grow_from_batches(step, batches, 12, 0.25)
    nodes = [tree.node_weight_in.clone() for tree in trees(step)]
    for place in range(3, 9):
        step.update(step.accumulate(batches.read(4 * place, 0.25)), lr=0.01)
    for tree, before in zip(trees(step), nodes, strict=True):
        assert len(tree.leaf_weight_in.unique(dim=0)) == 8
        assert torch.equal(tree.node_weight_in, before)


@pytest.mark.parametrize("fff", ["1x3", "dense-8", "none", "1x0x4"])
def test_other_layers_do_not_grow(training, fff):
    step, batches = training(fff)
    before = {name: tensor.clone() for name, tensor in step.model.state_dict().items()}
    assert grow_from_batches(step, batches, 12, 0.25) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.model.state_dict().items())


def test_a_run_grows_at_its_fraction_of_the_budget(make_arguments, tmp_path, capsys):
    pretrain(make_arguments(fff="1x3x4", grow_at=0.4, eval_every=3, max_steps=12))
    assert "step 5 (42%): the trees of 2 layers have grown" in capsys.readouterr().out
    used = [line["leaves_used"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "leaves_used" in line]
    assert used[0] == [1 / 8, 1 / 8]
    assert min(used[-1]) > 1 / 8
