"""Measures a server of embeddings under load, or serves a model of sentence-transformers as the control.

    ultrafastbert serve --model DIR --port 8080
    python scripts/load_test.py --url http://127.0.0.1:8080 [--clients 8] [--seconds 30]

    python scripts/load_test.py --serve_sentence_transformers DIR --port 8081
    python scripts/load_test.py --url http://127.0.0.1:8081 [--clients 8] [--seconds 30]

Each client has one connection and sends its next request when the last one is answered. Texts are English sentences
and paragraphs of 3 to 200 words, drawn by a seed: the same ones for every server. Clients are threads of one process
with the HTTP client of Python, because they take time of the processor that is measured. Restrict both to processors
of their own (`taskset`) where there are enough.
"""

import http.client
import json
import math
import random
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from ultrafastbert.cli import parse_arguments
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.validation import NOT_NEGATIVE, POSITIVE, check_fields

WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they "
    "which one you were her all she there would their we him been has when who will more no if out so said what "
    "up its about into than them can only other new some could time these two may then do first any my now such "
    "like our over man river government history water language music science village island company system museum "
    "important different several German population election station between during against university published "
    "season album family"
)
MEDIAN_WORDS, SPREAD = 24, 0.9
"""Lengths are log-normal, with this median and standard deviation of the logarithm."""


@dataclass
class Arguments:
    """What is measured, or served."""

    url: str = ""
    """Address of a running server, such as http://127.0.0.1:8080."""
    path: Literal["/embed", "/v1/embeddings"] = "/embed"
    """What is asked for."""
    clients: int = 8
    """Clients at one time."""
    texts: int = 1
    """Texts of a request."""
    seconds: float = 30.0
    """How long it is measured. [seconds]"""
    warmup: float = 2.0
    """How long requests are sent before. [seconds]"""
    seed: int = 0
    """Of the texts."""
    api_key: str = ""
    """Of the server, if it has one."""
    serve_sentence_transformers: str = ""
    """Serve this model of sentence-transformers with the same two paths, instead of measuring."""
    port: int = 8081
    """Where to serve it."""

    def __post_init__(self):
        check_fields(self, POSITIVE, "clients", "texts", "seconds")
        check_fields(self, NOT_NEGATIVE, "warmup")
        if bool(self.url) == bool(self.serve_sentence_transformers):
            raise ValueError("one of url and serve_sentence_transformers should be given")


class Answer(NamedTuple):
    """One request: when it was sent, how long the answer took [seconds], and its status; 0 without an answer."""

    sent: float
    seconds: float
    status: int


@dataclass
class Clients:
    """Threads that send requests until `stop`."""

    arguments: Arguments
    answers: list[Answer] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, number: int) -> None:
        """One client."""
        arguments, address = self.arguments, urlsplit(self.arguments.url)
        generator = random.Random(f"{arguments.seed}-{number}")
        name = "input" if arguments.path.startswith("/v1") else "inputs"
        headers = {"Content-Type": "application/json"}
        if arguments.api_key:
            headers["Authorization"] = f"Bearer {arguments.api_key}"
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)
        while not self.stop.is_set():
            extra = {"model": "any"} if name == "input" else {"truncate": True}
            body = json.dumps({name: [draw_text(generator) for _ in range(arguments.texts)], **extra})
            sent = time.perf_counter()
            try:
                connection.request("POST", arguments.path, body, headers)
                response = connection.getresponse()
                response.read()
                status = response.status
            except (OSError, http.client.HTTPException):
                status = 0
                connection.close()
                time.sleep(0.05)  # a server that is not there is not asked in a busy loop
            self.answers.append(Answer(sent, time.perf_counter() - sent, status))
        connection.close()


def draw_text(generator: random.Random) -> str:
    """A text of 3 to 200 words."""
    length = round(min(200, max(3, MEDIAN_WORDS * generator.lognormvariate(0, SPREAD))))
    return " ".join(generator.choices(WORDS.split(), k=length)).capitalize() + "."


def measure(arguments: Arguments) -> list[Answer]:
    """The answers to requests that were sent after the warm-up and answered before the end."""
    clients = Clients(arguments)
    threads = [threading.Thread(target=clients.run, args=(number,)) for number in range(arguments.clients)]
    begin = time.perf_counter() + arguments.warmup
    for thread in threads:
        thread.start()
    time.sleep(arguments.warmup + arguments.seconds)
    end = time.perf_counter()
    clients.stop.set()
    for thread in threads:
        thread.join()
    return [each for each in clients.answers if each.sent >= begin and each.sent + each.seconds <= end]


def report(arguments: Arguments, answers: list[Answer]) -> str:
    """Requests and texts per second, latencies, and errors by status."""
    times = sorted(each.seconds for each in answers if each.status == 200)
    errors = Counter(each.status or "no answer" for each in answers if each.status != 200)
    lines = [f"{arguments.url}{arguments.path}: {arguments.clients} clients, {arguments.texts} texts a request"]
    if times:
        rate = len(times) / arguments.seconds
        p99 = times[math.ceil(0.99 * len(times)) - 1]
        lines.append(f"  {rate:.1f} requests/s, {rate * arguments.texts:.1f} texts/s over {arguments.seconds:g} s")
        lines.append(
            f"  p50 {1e3 * statistics.median(times):.1f} ms, p99 {1e3 * p99:.1f} ms, max {1e3 * times[-1]:.1f} ms"
        )
    found = ", ".join(f"{errors[status]} with {status}" for status in sorted(errors, key=str))
    lines.append(f"  errors: {found or 'none'}")
    return "\n".join(lines)


def control(directory: str) -> Any:
    """The control: sentence-transformers behind `/embed` and `/v1/embeddings`, as one would write it by hand."""
    from fastapi import Body, FastAPI
    from sentence_transformers import SentenceTransformer

    app, model, lock = FastAPI(), SentenceTransformer(directory, device="cpu"), threading.Lock()

    def encode(texts: str | list[str]) -> list[list[float]]:
        with lock:  # several calls at one time would compete for the same cores
            vectors = model.encode([texts] if isinstance(texts, str) else texts, normalize_embeddings=True)
        return vectors.tolist()

    @app.post("/embed")
    def embed(inputs: str | list[str] = Body(), truncate: bool = Body(True)) -> list[list[float]]:  # noqa: B008
        return encode(inputs)

    @app.post("/v1/embeddings")
    def embeddings(input: str | list[str] = Body(), model: str = Body("")) -> dict:  # noqa: B008
        data = [
            {"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(encode(input))
        ]
        return {"object": "list", "data": data, "model": model}

    return app


def main(arguments: Arguments) -> None:
    """Measures, or serves."""
    if arguments.serve_sentence_transformers:
        import uvicorn

        uvicorn.run(control(arguments.serve_sentence_transformers), port=arguments.port, log_level="warning")
        return
    answers = measure(arguments)
    print(report(arguments, answers))
    if not any(each.status == 200 for each in answers):
        raise UserError(f"no request to {arguments.url}{arguments.path} was answered")


if __name__ == "__main__":
    try:
        main(parse_arguments(Arguments, sys.argv[1:], "load_test.py", "Measures a server of embeddings under load."))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
