"""The queue: order, sizes of batches, errors, cancelled requests, limits."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ultrafastbert.serving.batching import Batcher, QueueFull, Stopped


class Item(str):
    """A text whose length is the number that it ends in."""

    @property
    def length(self):
        return int(self.split(":")[1])


class Computer:
    """Computes upper case, of batches that it records; `gate` holds it."""

    def __init__(self):
        self.batches, self.gate, self.entered = [], threading.Event(), threading.Event()
        self.gate.set()

    def __call__(self, batch):
        self.batches.append([str(item) for item in batch])
        self.entered.set()
        assert self.gate.wait(60)
        if any("bad" in item for item in batch):
            raise ValueError("a bad text")
        return [item.upper() for item in batch]


@pytest.fixture
def computer():
    return Computer()


def batcher(computer, max_batch_tokens=10, max_queue=1000, padded_tokens=1000, **options):
    return Batcher(computer, max_batch_tokens, max_queue, padded_tokens, **options)


def items(*texts):
    return [Item(text) for text in texts]


def queue_behind_a_gate(computer, queue, *requests):
    """The works of requests that all wait while the first batch, of one text, is held; then lets them go."""
    computer.gate.clear()
    first = queue.submit(items("first:1"))
    assert computer.entered.wait(60)
    works = [queue.submit(items(*texts)) for texts in requests]
    computer.gate.set()
    return [first, *works]


def results(works):
    return [work.future.result(60) for work in works]


def test_texts_of_requests_are_computed_together_in_the_order_in_which_they_came(computer):
    with batcher(computer) as queue:
        works = queue_behind_a_gate(computer, queue, ["a:4", "b:4"], ["c:2"], ["d:9"], ["e:1", "f:1"])
        found = results(works)
    assert found == [["FIRST:1"], ["A:4", "B:4"], ["C:2"], ["D:9"], ["E:1", "F:1"]]
    assert computer.batches == [["first:1"], ["a:4", "b:4", "c:2"], ["d:9", "e:1"], ["f:1"]]


def test_a_text_longer_than_a_batch_is_computed_alone(computer):
    with batcher(computer) as queue:
        works = queue_behind_a_gate(computer, queue, ["a:1"], ["b:99"], ["c:1"])
        results(works)
    assert computer.batches[1:] == [["a:1"], ["b:99"], ["c:1"]]


def test_padding_counts_where_it_is_computed(computer):
    with batcher(computer, max_batch_tokens=1000, padded_tokens=12) as queue:
        results(queue_behind_a_gate(computer, queue, ["a:1", "b:1", "c:1"], ["d:4"], ["e:1"]))
    assert computer.batches[1:] == [["a:1", "b:1", "c:1"], ["d:4", "e:1"]]  # 4 texts of 4 would be 16


def test_an_error_reaches_only_the_requests_that_cause_it(computer):
    with batcher(computer) as queue:
        works = queue_behind_a_gate(computer, queue, ["a:1", "b:1"], ["bad:1", "c:1"], ["d:1"])
        assert results([works[1], works[3]]) == [["A:1", "B:1"], ["D:1"]]
        with pytest.raises(ValueError, match="a bad text"):
            works[2].future.result(60)
        assert results([queue.submit(items("e:1"))]) == [["E:1"]]  # it lives on


def test_later_texts_of_a_request_that_failed_are_skipped(computer):
    with batcher(computer, max_batch_tokens=1) as queue:
        works = queue_behind_a_gate(computer, queue, ["bad:1", "a:1"], ["b:1"])
        assert results([works[2]]) == [["B:1"]]
    assert ["a:1"] not in computer.batches


def test_a_wrong_number_of_results_is_an_error():
    with batcher(lambda batch: []) as queue, pytest.raises(RuntimeError, match="a batch of 1 texts has 0 results"):
        queue.submit(items("a:1")).future.result(60)


@pytest.mark.parametrize("by_future", [False, True])
def test_cancelled_requests_are_skipped(computer, by_future):
    computer.gate.clear()
    with batcher(computer) as queue:
        first = queue.submit(items("first:1"))
        assert computer.entered.wait(60)
        cancelled, kept = queue.submit(items("a:1")), queue.submit(items("b:1"))
        if by_future:
            cancelled.future.cancel()
        else:
            queue.cancel(cancelled)
            queue.cancel(first)  # is computed already, for nobody
        computer.gate.set()
        assert results([kept]) == [["B:1"]]
    assert computer.batches == [["first:1"], ["b:1"]]


def test_the_queue_is_bounded(computer):
    with batcher(computer, max_queue=3) as queue:
        with queue.admit(2):
            with pytest.raises(QueueFull, match=r"2 texts are waiting .* the request has 2; together .* at most 3"):
                queue.admit(2).__enter__()
            with queue.admit(1):
                assert queue.admitted == 3
        assert queue.admitted == 0
        with pytest.raises(KeyError), queue.admit(3):
            raise KeyError
        assert queue.admitted == 0


def test_closing_computes_what_is_waiting(computer):
    computer.gate.clear()
    queue = batcher(computer).__enter__()
    works = [queue.submit(items(f"{index}:7")) for index in range(5)]
    closing = threading.Thread(target=queue.close)
    closing.start()
    computer.gate.set()
    assert results(works) == [[f"{index}:7"] for index in range(5)]
    closing.join(60)
    assert not queue.is_running
    with pytest.raises(Stopped):
        queue.submit(items("a:1"))


def test_answers_of_many_threads_are_not_swapped(computer):
    with batcher(computer, max_batch_tokens=50) as queue, ThreadPoolExecutor(16) as pool:

        def ask(number):
            texts = [f"{number}-{index}:{1 + (number + index) % 20}" for index in range(1 + number % 7)]
            assert queue.submit(items(*texts)).future.result(60) == [text.upper() for text in texts]

        list(pool.map(ask, range(300)))


def test_sizes_of_batches_are_observed(computer):
    observed = []
    with batcher(computer, observe=observed.append) as queue:
        results(queue_behind_a_gate(computer, queue, ["a:4", "b:3"]))
    assert [(size.texts, size.tokens) for size in observed] == [(1, 1), (2, 7)]
    assert all(size.seconds > 0 for size in observed)
