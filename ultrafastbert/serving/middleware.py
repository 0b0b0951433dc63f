"""What happens to every request before its route: it is counted, its API key is checked, its size is limited."""

import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ultrafastbert.serving.errors import RequestError, respond
from ultrafastbert.serving.metrics import Metrics

PUBLIC = ("/health", "/metrics")
"""Paths that need no API key, for load balancers and Prometheus."""


class Measured:
    """Counts requests by endpoint and status, and measures their time."""

    def __init__(self, app: ASGIApp, metrics: Metrics, endpoints: set[str]):
        self.app, self.metrics, self.endpoints = app, metrics, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An application of ASGI."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            endpoint = scope["path"] if scope["path"] in self.endpoints else "other"  # not as many as clients invent
            self.metrics.count_request(endpoint, status, time.perf_counter() - started)


class ApiKey:
    """Refuses requests without the key, before their body is read."""

    def __init__(self, app: ASGIApp, key: str | None):
        self.app, self.expected = app, None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An application of ASGI."""
        if scope["type"] != "http" or self.expected is None or scope["path"] in PUBLIC:
            return await self.app(scope, receive, send)
        given = dict(scope["headers"]).get(b"authorization", b"")
        if secrets.compare_digest(given, self.expected):
            return await self.app(scope, receive, send)
        found = "is wrong" if given else "is missing"
        error = RequestError(
            401,
            f"the API key {found}; send the header 'Authorization: Bearer KEY'",
            None,
            {"WWW-Authenticate": "Bearer"},
        )
        await respond(scope["path"], error)(scope, receive, send)


class BodyLimit:
    """Refuses larger bodies, by their stated size or while they are read."""

    def __init__(self, app: ASGIApp, limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An application of ASGI."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        error = RequestError(413, f"the body is too large; it should have at most {self.limit} bytes")
        if stated.isdigit() and int(stated) > self.limit:
            return await respond(scope["path"], error)(scope, receive, send)
        received = 0

        async def count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                raise error
            return message

        await self.app(scope, count, send)
