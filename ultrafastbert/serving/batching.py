"""Dynamic batching: texts of different requests are computed together, in the order in which they came.

One thread computes. When it is free it takes what is waiting, up to a number of tokens, and does not wait for more: a
single request is computed at once, and batches grow with the load. Texts, not requests, are the unit, so a large
request is spread over several batches.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, NamedTuple, Protocol, Self

import torch


class HasLength(Protocol):
    """What is computed: anything with a number of tokens."""

    @property
    def length(self) -> int:
        """The number of tokens."""
        ...


class QueueFull(RuntimeError):
    """There is no room for the texts of a request."""


class Stopped(RuntimeError):
    """The thread that computes has been stopped."""


class BatchSize(NamedTuple):
    """What a batch contained, for statistics.

    Attributes:
        texts: their number.
        tokens: the sum of their lengths, padding excluded.
        seconds: how long the batch took.
    """

    texts: int
    tokens: int
    seconds: float


class Work:
    """The texts of one request.

    Attributes:
        future: gets the list of results in the order of the texts, or the exception of one of them. Cancelling it
            makes the batcher skip the texts that are still waiting.
    """

    def __init__(self, items: Sequence[HasLength]):
        self.items = items
        self.future: Future[list[Any]] = Future()
        self._results: list[Any] = [None] * len(items)
        self._remaining = len(items)

    def finish(self, index: int, result: Any) -> None:
        """Stores a result; the last one completes the future."""
        self._results[index] = result
        self._remaining -= 1
        if self._remaining == 0:
            with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
                self.future.set_result(self._results)

    def fail(self, error: BaseException) -> None:
        """Completes the future with an exception."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)


class Entry(NamedTuple):
    """One text in the queue."""

    work: Work
    index: int

    @property
    def item(self) -> HasLength:
        """The text."""
        return self.work.items[self.index]


class Batcher:
    """A bounded queue of texts, and the thread that computes them; a context manager that starts and stops it.

    Args:
        run: computes a batch: a list of items -> a list of as many results. It is called in one thread only.
        max_batch_tokens: the largest sum of lengths in a batch; a longer item is computed alone.
        max_queue: the largest number of texts that are admitted at one time.
        padded_tokens: the largest number of items times the longest of them, which is what padding takes.
        observe: called after each batch.
    """

    def __init__(
        self,
        run: Callable[[list[Any]], Sequence[Any]],
        max_batch_tokens: int,
        max_queue: int,
        padded_tokens: int,
        observe: Callable[[BatchSize], None] = lambda size: None,
    ):
        self._compute, self._observe = run, observe
        self.max_batch_tokens, self.max_queue, self.padded_tokens = max_batch_tokens, max_queue, padded_tokens
        self.admitted = 0
        self._waiting: deque[Entry] = deque()
        self._changed = threading.Condition()
        self._closed = False
        # a daemon, so that a batch that never ends cannot keep the process alive
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def is_running(self) -> bool:
        """Whether batches are computed."""
        return self._thread.is_alive() and not self._closed

    @contextlib.contextmanager
    def admit(self, texts: int) -> Iterator[None]:
        """Takes room for the texts of a request, from its arrival to its answer.

        Raises:
            QueueFull: there is not enough.
        """
        with self._changed:
            if self.admitted + texts > self.max_queue:
                raise QueueFull(
                    f"{self.admitted} texts are waiting or computed and the request has {texts}; "
                    f"together they should be at most {self.max_queue}"
                )
            self.admitted += texts
        try:
            yield
        finally:
            with self._changed:
                self.admitted -= texts

    def submit(self, items: Sequence[HasLength]) -> Work:
        """Appends the texts of a request, at least one, to the queue.

        Raises:
            Stopped: `close` was called.
        """
        work = Work(items)
        with self._changed:
            if self._closed:
                raise Stopped("the server is stopping")
            self._waiting.extend(Entry(work, index) for index in range(len(items)))
            self._changed.notify()
        return work

    def cancel(self, work: Work) -> None:
        """Removes the texts of a request that wait; those in the current batch are computed for nobody."""
        work.future.cancel()
        with self._changed:
            self._waiting = deque(entry for entry in self._waiting if entry.work is not work)

    def close(self, seconds: float = 60.0) -> None:
        """Computes what is waiting, and stops the thread; waits at most this long for it."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _work(self) -> None:
        torch.set_num_threads(torch.get_num_threads())  # OpenMP keeps the number for each thread that calls it
        while batch := self._take():
            started = time.perf_counter()
            self._run(batch)
            tokens = sum(entry.item.length for entry in batch)
            self._observe(BatchSize(len(batch), tokens, time.perf_counter() - started))

    def _take(self) -> list[Entry]:
        """The next batch, at least one text; an empty list after `close` when nothing is waiting."""
        batch: list[Entry] = []
        tokens = longest = 0
        with self._changed:
            while not batch:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return []
                while self._waiting:
                    entry = self._waiting[0]
                    if entry.work.future.done():  # cancelled, or one of its texts failed
                        self._waiting.popleft()
                        continue
                    tokens, longest = tokens + entry.item.length, max(longest, entry.item.length)
                    too_wide = (len(batch) + 1) * longest > self.padded_tokens
                    if batch and (tokens > self.max_batch_tokens or too_wide):
                        break
                    batch.append(self._waiting.popleft())
        return batch

    def _run(self, batch: list[Entry]) -> None:
        """Computes a batch. If that fails, each of its requests is computed alone, so only the faulty ones fail."""
        try:
            results = self._compute([entry.item for entry in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"a batch of {len(batch)} texts has {len(results)} results")
        except Exception as error:
            works = list(dict.fromkeys(entry.work for entry in batch))
            if len(works) == 1:
                works[0].fail(error)
                return
            for work in works:
                self._run([entry for entry in batch if entry.work is work])
            return
        for entry, result in zip(batch, results, strict=True):
            entry.work.finish(entry.index, result)
