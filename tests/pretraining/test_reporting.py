"""Metrics of several steps."""

from ultrafastbert.pretraining.in_flight import StepResult
from ultrafastbert.pretraining.reporting import summarize


def test_means_omit_steps_that_are_not_finite():
    results = [
        StepResult({}, lr=0.1, sequences=4, loss=loss, gradient_norm=norm, seconds=2.0)
        for loss, norm in ((1.0, 1.0), (float("inf"), 1.0), (3.0, float("nan")), (2.0, 7.0))
    ]
    assert summarize(results, sequence_length=10) == {
        "loss": 1.5,
        "gradient_norm": 7.0,
        "lr": 0.1,
        "batch_size": 4,
        "tokens_per_second": 20.0,
    }
    only_bad = summarize(results[1:3], sequence_length=10)
    assert only_bad["loss"] is None and only_bad["gradient_norm"] is None
