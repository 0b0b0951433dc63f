"""Errors that are answered to a client, in the form of the interface that it uses.

Paths below /v1 answer as OpenAI does, `{"error": {"message", "type", "param", "code"}}`, the others as
text-embeddings-inference does, `{"error", "error_type"}`.
"""

from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

KINDS = {500: "Backend", 503: "Overloaded"}
"""`error_type` of text-embeddings-inference by status; others are errors of validation."""
CODES = {401: "invalid_api_key", 413: "too_large", 503: "overloaded"}
"""`code` of OpenAI's form by status."""
CLIENT_GONE = 499
"""The status of a request whose client closed the connection; nobody receives it, but metrics count it."""


class RequestError(HTTPException):
    """An error whose message a client receives.

    Args:
        status: the HTTP status.
        message: says what happened, to what, and what to do.
        kind: `error_type` of text-embeddings-inference; None: that of the status.
        headers: of the answer.
    """

    def __init__(self, status: int, message: str, kind: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(status, message, headers)
        self.kind = kind or KINDS.get(status, "Validation")


def respond(path: str, error: HTTPException) -> JSONResponse:
    """The answer for an error."""
    # messages may quote what a client has sent, in which JSON can write half of a character
    status, message = error.status_code, error.detail.encode(errors="backslashreplace").decode()
    if path.startswith("/v1/"):
        kind = "server_error" if status >= 500 else "invalid_request_error"
        details = {"message": message, "type": kind, "param": None, "code": CODES.get(status)}
        return JSONResponse({"error": details}, status, error.headers)
    kind = error.kind if isinstance(error, RequestError) else KINDS.get(status, "Validation")
    return JSONResponse({"error": message, "error_type": kind}, status, error.headers)


MOST_SENTENCES = 5
"""Wrong fields that a message names."""


def explain(error: RequestValidationError) -> RequestError:
    """One sentence for each field of a body that is wrong."""
    return RequestError(422, "; ".join(map(_sentence, error.errors()[:MOST_SENTENCES])))


def _sentence(problem: dict[str, Any]) -> str:
    kind, place, value = problem["type"], problem["loc"][1:], problem.get("input")
    if kind == "json_invalid":
        return f"the body is not JSON: {problem['ctx']['error']}"
    if kind == "value_error":  # of a validator in `schemas`, a whole sentence
        return str(problem["ctx"]["error"])
    if kind == "string_unicode":  # half of a character
        return f"{shorten(value)} is not the name of a field; it should be valid Unicode"
    if not place:
        return "the body should be a JSON object, sent with the header Content-Type: application/json"
    name = ".".join(map(str, place))[:60]
    if kind == "missing":
        return f"{name} is missing"
    if kind == "extra_forbidden":
        return f"{name} is not a field of this request"
    return f"{name} is {shorten(value)}; {problem['msg'].replace('Input should', 'it should')}"


def shorten(value: Any) -> str:
    """A value for a message, at most 60 characters of it."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
