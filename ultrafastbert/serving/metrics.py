"""What `/metrics` reports, in the text format of Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ultrafastbert.serving.batching import BatchSize

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Metrics:
    """Counters and histograms of one server, in a registry of their own."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self._requests = Counter("ufb_requests", "Answered requests.", ["endpoint", "status"], registry=self.registry)
        self._seconds = Histogram(
            "ufb_request_duration_seconds",
            "Time from the arrival of a request to its answer.",
            ["endpoint"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._queue = Gauge("ufb_queue_texts", "Texts that wait or are computed.", registry=self.registry)
        self._batch_texts = Histogram("ufb_batch_texts", "Texts in a batch.", buckets=TEXTS, registry=self.registry)
        self._batch_tokens = Histogram(
            "ufb_batch_tokens", "Tokens in a batch, padding excluded.", buckets=TOKENS, registry=self.registry
        )
        self._batch_seconds = Histogram(
            "ufb_batch_duration_seconds", "Time to compute a batch.", buckets=SECONDS, registry=self.registry
        )
        self._tokens = Counter("ufb_tokens", "Tokens computed, padding excluded.", registry=self.registry)

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Reports what `length` returns as the length of the queue."""
        self._queue.set_function(length)

    def count_request(self, endpoint: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def count_batch(self, size: BatchSize) -> None:
        """Counts a batch."""
        self._batch_texts.observe(size.texts)
        self._batch_tokens.observe(size.tokens)
        self._batch_seconds.observe(size.seconds)
        self._tokens.inc(size.tokens)

    def report(self) -> bytes:
        """All of them, in the text format of Prometheus."""
        return generate_latest(self.registry)
