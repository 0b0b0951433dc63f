"""A run that diverged ends with an error and advice, and keeps its last good checkpoint."""

import pytest
import torch

from tests.pretraining.test_trainer import break_loss, weights
from ultrafastbert.pretraining import trainer
from ultrafastbert.pretraining.evaluation import Evaluation
from ultrafastbert.pretraining.trainer import pretrain
from ultrafastbert.runs.checkpoints import numbered_checkpoints, read_checkpoint
from ultrafastbert.utils.errors import UserError


@pytest.mark.parametrize("lr", [1e9, 1e30])
def test_a_huge_learning_rate(make_arguments, tmp_path, lr):
    for _ in range(2):  # the same command again does not turn it into success
        with pytest.raises(UserError, match="(not finite|validation loss is) .*lower train.lr"):
            pretrain(make_arguments(lr=lr))
        assert not (tmp_path / "run" / "final").exists()


def test_many_skipped_steps(make_arguments, tmp_path, monkeypatch):
    break_loss(monkeypatch, {4, 5, 6, 7})
    arguments = make_arguments()
    with pytest.raises(UserError, match=r"4 of 12 steps were skipped .* more than 25% .*step-12"):
        pretrain(arguments)
    checkpoints = numbered_checkpoints(tmp_path / "run" / "checkpoints")
    assert [path.name for path in checkpoints] == ["step-4", "step-12"]  # at 8 the last loss was not finite
    assert not (tmp_path / "run" / "final").exists()
    arguments.train.max_skipped_fraction = 0.5
    assert pretrain(arguments).exists()


def test_no_checkpoint_replaces_a_good_one_while_the_loss_is_not_finite(make_arguments, tmp_path, monkeypatch):
    break_loss(monkeypatch, range(6, 12))
    with pytest.raises(UserError, match="last good checkpoint: .*step-4"):
        pretrain(make_arguments(max_steps=12, keep_checkpoints=1))
    (checkpoint,) = numbered_checkpoints(tmp_path / "run" / "checkpoints")
    read_checkpoint(checkpoint)
    assert all(tensor.isfinite().all() for tensor in weights(checkpoint).values())


def test_a_validation_loss_that_is_not_finite(make_arguments, tmp_path, monkeypatch):
    evaluate = trainer.evaluate
    monkeypatch.setattr(
        trainer, "evaluate", lambda step, *rest: Evaluation(float("nan"), 0.0) if rest else evaluate(step)
    )
    with pytest.raises(UserError, match=r"the validation loss is nan at step 6; the last good checkpoint: .*step-4"):
        pretrain(make_arguments())
    assert not (tmp_path / "run" / "final").exists()
    assert torch.isfinite(weights(tmp_path / "run" / "checkpoints" / "step-4")["model.final_norm.weight"]).all()
