"""From the texts of a request to their results: limits, tokens, a place in the queue."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Self, TypeVar

from fastapi import Request

from ultrafastbert.serving.arguments import ServeArguments
from ultrafastbert.serving.batching import Batcher, QueueFull, Stopped
from ultrafastbert.serving.engine import Encoded, Engine, Input
from ultrafastbert.serving.errors import CLIENT_GONE, RequestError
from ultrafastbert.serving.metrics import Metrics
from ultrafastbert.utils.errors import UserError

PADDING = 4
"""How many times `max_batch_tokens` a batch may have with padding, if the model removes it: embeddings are padded."""
Value = TypeVar("Value")
log = logging.getLogger("ultrafastbert.serving")


class Computed(NamedTuple):
    """The results of a request, in the order of its texts.

    Attributes:
        texts: their tokens.
        results: what the engine's `run` returned for them.
    """

    texts: list[Encoded]
    results: list[Any]

    @property
    def tokens(self) -> int:
        """The number of tokens, padding excluded."""
        return sum(text.length for text in self.texts)


class Service:
    """A model with its queue and its metrics; a context manager that starts and stops the thread that computes.

    Args:
        engine: the model.
        arguments: limits.

    Attributes:
        interrupted: number of requests that the server stopped without an answer.
    """

    def __init__(self, engine: Engine, arguments: ServeArguments):
        self.engine, self.arguments, self.metrics = engine, arguments, Metrics()
        tokens = arguments.max_batch_tokens
        padded = tokens * (PADDING if engine.drops_padding else 1)
        self.batcher = Batcher(engine.run, tokens, arguments.max_queue, padded, self.metrics.count_batch)
        self.metrics.watch_queue(lambda: self.batcher.admitted)
        self.interrupted = 0
        # one thread: tokenizers hold the settings of a call as state
        self._tokenizing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")

    def __enter__(self) -> Self:
        self.batcher.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.batcher.close()
        self._tokenizing.shutdown()

    def warm_up(self) -> None:
        """Computes one token, so that a model that cannot compute is noticed, and the first request is not slower.

        Raises:
            UserError: the model raises an exception.
        """
        types = [0] if self.engine.config.type_vocab_size else None
        try:
            self.batcher.submit([Encoded([0], types)]).future.result()
        except Exception as error:
            raise UserError(f"the model cannot compute: {type(error).__name__}: {error}") from error

    async def compute(
        self,
        request: Request,
        texts: Sequence[Input] | list[list[int]],
        name: str = "inputs",
        truncate: bool | None = None,
        side: str = "Right",
        check: Callable[[str, Encoded], None] = lambda name, text: None,
    ) -> Computed:
        """The results of texts, or of lists of token ids.

        Args:
            request: that asks for them; when its client disconnects, texts that wait are removed from the queue.
            texts: of the request.
            name: of the field that has the texts, for messages.
            truncate: longer texts; None: as the server's option says.
            side: where.
            check: raises a RequestError for a text that cannot be computed, given its name and tokens.

        Raises:
            RequestError: a limit is exceeded, a text is empty or the model failed.
        """
        if not texts:
            raise RequestError(400, f"{name} is empty; it should have at least one text", "Empty")
        most = self.arguments.max_batch_texts
        if len(texts) > most:
            raise RequestError(
                413, f"{name} has {len(texts)} texts; it should have at most {most}, the server's limit"
            )
        async with self._room(len(texts)):
            truncate = self.arguments.truncate if truncate is None else truncate
            encoded = await self._encode(texts, name, truncate, side.lower())
            for index, text in enumerate(encoded):
                self._check(_place(name, index, texts), text)
                check(_place(name, index, texts), text)
            results = await self._answer(request, encoded)
        for index, result in enumerate(results):
            if not self.engine.is_finite(result):
                place = _place(name, index, texts)
                raise RequestError(500, f"the model's output for {place} has numbers that are not finite")
        return Computed(encoded, results)

    async def with_tokenizer(self, function: Callable[..., Value], *arguments: Any) -> Value:
        """Calls a function in the thread of the tokenizer."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, function, *arguments)

    @asynccontextmanager
    async def _room(self, texts: int) -> AsyncIterator[None]:
        try:
            with self.batcher.admit(texts):
                yield
        except QueueFull as error:
            message = f"the server is overloaded: {error}; try again later"
            raise RequestError(503, message, headers={"Retry-After": "1"}) from None
        except Stopped as error:
            raise RequestError(503, f"{error}; try another one", "Unhealthy") from None
        except asyncio.CancelledError:  # the time to stop is over
            self.interrupted += 1
            raise

    async def _encode(self, texts: Sequence[Any], name: str, truncate: bool, side: str) -> list[Encoded]:
        if isinstance(texts[0], list):
            most = self.engine.max_length if truncate else None
            types = [0] if self.engine.config.type_vocab_size else None
            for index, tokens in enumerate(texts):
                self._check_ids(_place(name, index, texts), tokens)
            cut = [tokens[:most] for tokens in texts]
            return [Encoded(tokens, types and types * len(tokens)) for tokens in cut]
        return await self.with_tokenizer(self.engine.encode, texts, truncate, side)

    def _check_ids(self, name: str, tokens: list[int]) -> None:
        for token in tokens:
            if not 0 <= token < self.engine.vocab_size:
                raise RequestError(
                    422, f"{name} has the token {token}; it should be from 0 to {self.engine.vocab_size - 1}"
                )

    def _check(self, name: str, text: Encoded) -> None:
        most = self.engine.max_length
        if text.length > most:
            raise RequestError(
                413, f"{name} has {text.length} tokens; it should have at most {most}, unless it is truncated"
            )
        if text.length == 0:
            raise RequestError(422, f"{name} has no tokens; it should have at least one")

    async def _answer(self, request: Request, texts: list[Encoded]) -> list[Any]:
        """Waits for the results, or for the client to disconnect."""
        work = self.batcher.submit(texts)
        future = asyncio.wrap_future(work.future)
        watcher = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait({future, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                raise RequestError(CLIENT_GONE, "the client closed the connection")
            return future.result()
        except (RequestError, asyncio.CancelledError):
            raise
        except Exception as error:
            log.error("the model failed", exc_info=error)
            raise RequestError(500, f"the model failed: {type(error).__name__}: {str(error)[:200]}") from error
        finally:
            watcher.cancel()
            if not work.future.done():
                self.batcher.cancel(work)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _place(name: str, index: int, texts: Sequence[Any]) -> str:
    return name if len(texts) == 1 else f"{name}[{index}]"
