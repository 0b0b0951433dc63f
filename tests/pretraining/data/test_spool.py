"""Texts on disk: their order, duplicates, splits and samples."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ultrafastbert.pretraining.data import spool as spool_module
from ultrafastbert.pretraining.data.spool import Spool, in_validation, sampled


def everything(records):
    return np.ones(len(records), bool)


def read(spool, select=everything):
    return [text for texts, _ in spool.batches(select) for text in texts]


def filled(directory, texts):
    spool = Spool(directory)
    for text in texts:
        spool.append(text)
    spool.finish()
    return spool


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
    batch=st.integers(1, 30),
    chunk=st.integers(1, 7),
)
def test_texts_are_returned_in_order(tmp_path_factory, texts, batch, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module, "BATCH_BYTES", batch)
        patch.setattr(spool_module, "RECORDS_AT_A_TIME", chunk)
        spool = filled(tmp_path_factory.mktemp("spool") / "spool", texts)
        assert read(spool) == texts
        assert spool.size(everything) == sum(len(text.encode()) for text in texts)
        every_other = lambda records: np.arange(len(records)) % 2 == 0  # noqa: E731
        chunks = [texts[start : start + chunk] for start in range(0, len(texts), chunk)]
        assert read(spool, every_other) == [text for part in chunks for text in part[::2]]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(texts=st.lists(st.sampled_from([f"text {i}" for i in range(12)])), at_a_time=st.integers(1, 40))
def test_only_first_occurrences_stay_unmarked(tmp_path_factory, texts, at_a_time):
    spool = filled(tmp_path_factory.mktemp("spool") / "spool", texts)
    marked = spool.mark_repeated(at_a_time)
    assert read(spool, lambda records: ~records["repeated"]) == list(dict.fromkeys(texts))
    assert marked == len(texts) - len(set(texts))


def test_half_a_surrogate_pair_is_dropped(tmp_path):
    assert read(filled(tmp_path / "spool", ["one \ud800two"])) == ["one two"]


def test_splits_and_samples_have_the_requested_size_and_are_independent(tmp_path):
    records = filled(tmp_path / "spool", [f"text {i}" for i in range(20_000)]).records
    held_out, sample = in_validation(records, 0.1), sampled(records, 0.3)
    assert held_out.mean() == pytest.approx(0.1, abs=0.01)
    assert sample.mean() == pytest.approx(0.3, abs=0.015)
    assert (held_out & sample).mean() == pytest.approx(0.03, abs=0.006)
    assert sampled(records, 1.0).all() and sampled(records, 7.5).all() and not in_validation(records, 0.0).any()


def test_a_split_depends_only_on_the_text(tmp_path):
    texts = [f"text {i}" for i in range(1000)]
    forwards, backwards = filled(tmp_path / "a", texts), filled(tmp_path / "b", texts[::-1])
    validation = [read(spool, lambda records: in_validation(records, 0.2)) for spool in (forwards, backwards)]
    assert validation[0] == validation[1][::-1]
