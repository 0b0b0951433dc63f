"""Options of `ultrafastbert serve`."""

import os
from dataclasses import dataclass, field
from typing import Literal

from ultrafastbert.utils.validation import NOT_EMPTY, POSITIVE, Rule, at_least, check, check_fields, integer

API_KEY = "UFB_API_KEY"
"""The environment variable that may have the API key, because process lists show options."""
HEADER = Rule(lambda key: key.isascii() and key.isprintable() and " " not in key, "printable ASCII without spaces")


@dataclass(kw_only=True)
class ServeArguments:
    """Options of `ultrafastbert serve`."""

    model: str
    """Directory of a model: of sentence-transformers, an encoder, a masked language model or a sequence classifier,
    optimised or not; or a name on the Hub."""
    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 accepts connections from other machines; set an API key then."""
    port: int = 8080
    """Port to listen on; 0 takes a free one, which is printed."""
    api_key: str | None = field(default=None, repr=False)
    """Requests need the header `Authorization: Bearer API_KEY`, except for /health and /metrics. The environment
    variable UFB_API_KEY does the same, and does not show in lists of processes. [null: UFB_API_KEY, else no key]"""
    pooling: Literal["auto", "mean", "cls"] = "auto"
    """How hidden states become an embedding: their mean, or that of the first token. auto is what the modules of a
    model of sentence-transformers say, and the mean for other encoders. With mean or cls, a model with a head serves
    embeddings of its encoder."""
    max_length: int | None = None
    """Longest text. [tokens, special ones included; null: what the model takes]"""
    truncate: bool = False
    """Whether longer texts are truncated where the request does not say; otherwise they are refused (413)."""
    max_batch_tokens: int = 4096
    """Texts of different requests are computed together up to this number of tokens."""
    max_batch_texts: int = 256
    """Largest number of texts in a request; more are refused (413)."""
    max_queue: int = 1024
    """Largest number of texts that wait or are computed at one time; requests beyond it are refused (503)."""
    max_body_bytes: int = 2_000_000
    """Largest body of a request; larger ones are refused (413). [bytes]"""
    threads: int | None = None
    """Threads that compute. [null: PyTorch's choice, one for each core]"""
    optimize: bool = True
    """Whether the model is optimised for the CPU (`optimize_for_inference`)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and products when the model is optimised; auto: chosen by measurement, with int8."""
    int8: bool | Literal["auto"] = "auto"
    """Whether linear layers multiply in int8 when the model is optimised; auto: if that is faster here and outputs
    differ little. For converted encoders it is coarse (docs/encoders.md)."""
    stop_seconds: float = 30.0
    """After SIGTERM or Ctrl-C, how long accepted requests may take to be answered. [seconds]"""

    def __post_init__(self):
        if self.api_key is None and API_KEY in os.environ:
            self.api_key = os.environ[API_KEY]
            check(API_KEY, self.api_key, Rule(bool, "a non-empty value, or unset"))
        check_fields(self, NOT_EMPTY, "model", "host")
        if self.api_key is not None and not (self.api_key and HEADER.holds(self.api_key)):
            raise ValueError(f"api_key is not usable in a header; it should be {HEADER.expected}")  # it is a secret
        check_fields(self, integer(0, 65535), "port")
        check_fields(self, POSITIVE, "max_length", "max_batch_tokens", "max_batch_texts", "max_body_bytes", "threads")
        check_fields(self, at_least(self.max_batch_texts), "max_queue")
        check_fields(self, POSITIVE, "stop_seconds")
        if not self.optimize and (self.dtype, self.int8) != ("auto", "auto"):
            raise ValueError("optimize is False; dtype and int8 should be auto, because only optimising changes them")
