"""Trainings are taken one by one, by any number of processes; results appear whole and belong to their settings."""

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass

import pytest
from filelock import FileLock

from ultrafastbert.runs import results
from ultrafastbert.runs.results import ResultStore
from ultrafastbert.utils.errors import Interrupted, UserError
from ultrafastbert.utils.files import beside


@dataclass(frozen=True)
class Sleep:
    """A training that takes some time and notes which process ran it."""

    number: int

    @property
    def file(self):
        return f"sleeps/{self.number}.json"


PLAN = [Sleep(number) for number in range(6)]


def finish(store, plan=PLAN, seconds=0.0):
    """Runs the trainings; returns those that ran here."""
    ran = []

    def train(training, check):
        ran.append(training)
        time.sleep(seconds)
        check()
        store.write(training.file, {"settings": {"number": training.number}, "process": os.getpid()})

    store.finish(lambda: plan, train)
    return ran


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path / "runs")


def test_trainings_run_in_order_and_only_once(store):
    assert finish(store, PLAN[1:3]) == PLAN[1:3]
    assert finish(store) == [PLAN[0], *PLAN[3:]]
    assert finish(store) == []
    assert store.read("sleeps/3.json", {"number": 3})["process"] == os.getpid()
    names = {path.name for path in (store.directory / "sleeps").iterdir()}
    assert names == {f"{number}.json" for number in range(6)}  # neither locks nor temporary files


def test_a_training_that_fails_runs_again(store):
    def fail(training, check):
        raise MemoryError

    with pytest.raises(MemoryError):
        store.finish(lambda: PLAN, fail)
    assert finish(store) == PLAN


def test_trainings_that_depend_on_others_join_the_plan(store):
    def plan():
        return PLAN if store.is_finished(PLAN[5]) else PLAN[5:]

    ran = []

    def train(training, check):
        ran.append(training.number)
        store.write(training.file, {"settings": {}})

    store.finish(plan, train)
    assert ran == [5, 0, 1, 2, 3, 4]


def test_a_training_of_another_process_is_skipped_and_waited_for(store, monkeypatch):
    lock = FileLock(beside(store.directory / PLAN[0].file, "lock"))
    (store.directory / "sleeps").mkdir(parents=True)
    lock.acquire()
    waits = []

    def other_process_finishes(seconds):
        waits.append(seconds)
        store.write(PLAN[0].file, {"settings": {}})
        lock.release()

    monkeypatch.setattr(results.time, "sleep", lambda seconds: other_process_finishes(seconds) if seconds else None)
    assert finish(store) == PLAN[1:] and len(waits) == 1


def test_the_training_of_a_process_that_died_is_free(store):
    process = multiprocessing.get_context("spawn").Process(target=finish, args=(store, PLAN[:1], 60))
    process.start()
    lock = beside(store.directory / PLAN[0].file, "lock")
    deadline = time.monotonic() + 60
    while not lock.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    assert finish(store) == PLAN


def test_processes_divide_the_trainings(store):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=finish, args=(store, PLAN, 0.3)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    ran = [store.read(training.file)["process"] for training in PLAN]
    assert set(ran) <= {process.pid for process in processes}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_at_the_next_check(store, number):
    def train(training, check):
        if training.number == 2:
            signal.raise_signal(number)
        check()
        store.write(training.file, {"settings": {}})

    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as raised:
        store.finish(lambda: PLAN, train)
    assert str(raised.value) == (
        f"stopped by signal {number:d}; 2 of 6 trainings are finished and kept in {store.directory}; the same command"
        " resumes with the others"
    )
    assert raised.value.exit_code == 128 + number and signal.getsignal(number) is before
    assert finish(store) == PLAN[2:]


def test_a_signal_ends_the_wait_for_other_processes(store, monkeypatch):
    (store.directory / "sleeps").mkdir(parents=True)
    monkeypatch.setattr(results.time, "sleep", lambda seconds: signal.raise_signal(signal.SIGTERM))
    with FileLock(beside(store.directory / PLAN[0].file, "lock")), pytest.raises(Interrupted, match="0 of 1"):
        finish(store, PLAN[:1])


def test_results_of_other_settings_are_refused(tmp_path):
    store = ResultStore(tmp_path, remedy="Use another directory.")
    store.write("a.json", {"settings": {"train": {"lr": 1, "seed": 0}}, "fingerprint": "x", "seed": 5})
    same = {"train": {"lr": 1, "seed": 0}, "fingerprint": "x"}
    assert store.read("a.json", same)["seed"] == 5
    for settings, message in (
        (same | {"train": {"lr": 2, "seed": 0}}, "train.lr was 1 and is 2. Use another directory."),
        (same | {"fingerprint": "y"}, "fingerprint was 'x' and is 'y'. Use"),
        (same | {"batch": 4}, "batch was None and is 4. Use"),
        ({"train": {"lr": 1}}, "train.seed was 0 and is None. Use"),
    ):
        with pytest.raises(UserError, match=rf"a\.json has different settings: {message}"):
            store.read("a.json", settings)


def test_results_under_earlier_names_of_settings_are_read(tmp_path):
    store = ResultStore(tmp_path)
    store.write("a.json", {"settings": {"train": {"eval_rows": 8}}})
    assert store.read("a.json", {"train": {"eval_sequences": 8}})


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"settings": 3}', '"text"'])
def test_a_damaged_result_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json is not the result of a training: .*; remove it to run"):
        ResultStore(tmp_path).read("a.json", {})


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "write_atomically", full)
    with pytest.raises(UserError, match=r"a\.json cannot be written: .*No space left"):
        ResultStore(tmp_path).write("a.json", {})


def test_a_directory_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="runs/sleeps cannot be written"):
        finish(ResultStore(tmp_path / "runs"))
