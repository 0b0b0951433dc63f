"""The routes: `/v1/embeddings` of OpenAI, those of text-embeddings-inference, `/fill-mask` and `/metrics`."""

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import torch
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic_core import to_json
from starlette.exceptions import HTTPException

import ultrafastbert
from ultrafastbert.serving.engine import Classifier, Embedder, Encoded, Engine, MaskFiller, Task
from ultrafastbert.serving.errors import RequestError, explain, respond
from ultrafastbert.serving.middleware import ApiKey, BodyLimit, Measured
from ultrafastbert.serving.schemas import EmbedRequest, FillMaskRequest, OpenAIRequest, PredictRequest
from ultrafastbert.serving.service import Computed, Service

NEEDED: dict[Task, str] = {
    "embed": "an encoder, or a model of sentence-transformers",
    "predict": "a sequence classifier, as `ultrafastbert finetune --save_models true` writes it",
    "fill-mask": "a masked language model, as `ultrafastbert pretrain` writes it",
}
"""The model that answers a task."""


def create_app(service: Service) -> FastAPI:
    """The application; the caller starts and stops the service."""
    app = FastAPI(title="ultrafastbert serve", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(HTTPException, lambda request, error: respond(request.url.path, error))  # pyright: ignore
    app.add_exception_handler(
        RequestValidationError,
        lambda request, error: respond(request.url.path, explain(error)),  # pyright: ignore[reportArgumentType]
    )
    failed = RequestError(500, "the server failed; see its log")
    app.add_exception_handler(Exception, lambda request, error: respond(request.url.path, failed))
    _add_information(app, service)
    _add_embeddings(app, service)
    _add_predictions(app, service)
    _add_fills(app, service)
    # the last one added is called first
    app.add_middleware(BodyLimit, limit=service.arguments.max_body_bytes)
    app.add_middleware(ApiKey, key=service.arguments.api_key)
    endpoints = {route.path for route in app.routes if isinstance(route, APIRoute)}
    app.add_middleware(Measured, metrics=service.metrics, endpoints=endpoints)
    return app


def _add_information(app: FastAPI, service: Service) -> None:
    engine, arguments = service.engine, service.arguments

    @app.get("/health")
    async def health() -> Response:
        if not service.batcher.is_running:
            raise RequestError(503, "the server does not compute", "Unhealthy")
        return Response()

    @app.get("/metrics")
    async def report() -> Response:
        return Response(service.metrics.report(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @app.get("/info")
    async def info() -> Response:
        return _json(
            {
                "model_id": arguments.model,
                "model_dtype": str(engine.dtype).removeprefix("torch."),
                "model_type": engine.describe(),
                "max_input_length": engine.max_length,
                "max_batch_tokens": arguments.max_batch_tokens,
                "max_client_batch_size": arguments.max_batch_texts,
                "max_concurrent_requests": arguments.max_queue,  # of one text each
                "auto_truncate": arguments.truncate,
                "version": ultrafastbert.__version__,
            }
        )

    @app.get("/v1/models")
    async def models() -> Response:
        model = {"id": arguments.model, "object": "model", "created": 0, "owned_by": "ultrafastbert"}
        return _json({"object": "list", "data": [model]})


def _add_embeddings(app: FastAPI, service: Service) -> None:
    @app.post("/v1/embeddings", dependencies=[Depends(_needs(service.engine, "embed"))])
    async def embeddings(body: OpenAIRequest, request: Request) -> Response:
        engine = _embedder(service)
        _check_dimensions(engine, body.dimensions)
        texts: list[Any] = body.input if isinstance(body.input, list) else [body.input]
        if texts and isinstance(texts[0], int):
            texts = [texts]
        if texts and isinstance(texts[0], str):
            texts = [engine.default_prompt + text for text in texts]
        computed = await service.compute(request, texts, "input")
        vectors = _vectors(computed, normalize=True)
        in_base64 = body.encoding_format == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _base64(vector) if in_base64 else vector.tolist()}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": computed.tokens, "total_tokens": computed.tokens}
        return _json({"object": "list", "data": data, "model": service.arguments.model, "usage": usage})

    @app.post("/embed", dependencies=[Depends(_needs(service.engine, "embed"))])
    async def embed(body: EmbedRequest, request: Request) -> Response:
        engine = _embedder(service)
        _check_dimensions(engine, body.dimensions)
        prompt = _prompt(engine, body.prompt_name)
        texts = [prompt + text for text in _listed(body.inputs)]
        computed = await service.compute(request, texts, truncate=body.truncate, side=body.truncation_direction)
        return _json(_vectors(computed, normalize=body.normalize is not False).tolist())


def _add_predictions(app: FastAPI, service: Service) -> None:
    @app.post("/predict", dependencies=[Depends(_needs(service.engine, "predict"))])
    async def predict(body: PredictRequest, request: Request) -> Response:
        engine = service.engine
        assert isinstance(engine, Classifier)
        texts, batch = body.listed()
        computed = await service.compute(request, texts, truncate=body.truncate, side=body.truncation_direction)
        answers = []
        for logits in computed.results:
            scores = logits if body.raw_scores else engine.score(logits)
            answer = [
                {"score": score, "label": label} for score, label in zip(scores.tolist(), engine.labels, strict=True)
            ]
            answers.append(sorted(answer, key=lambda each: each["score"], reverse=True)[: body.parameters.top_k])
        return _json(answers if batch else answers[0])


def _add_fills(app: FastAPI, service: Service) -> None:
    @app.post("/fill-mask", dependencies=[Depends(_needs(service.engine, "fill-mask"))])
    async def fill_mask(body: FillMaskRequest, request: Request) -> Response:
        engine = service.engine
        assert isinstance(engine, MaskFiller)

        def check(name: str, text: Encoded) -> None:
            if engine.count_masks(text) == 0:
                mask = engine.tokenizer.mask_token
                raise RequestError(422, f"{name} has no mask; it should have at least one {mask}")

        texts = _listed(body.inputs)
        computed = await service.compute(
            request, texts, truncate=body.truncate, side=body.truncation_direction, check=check
        )
        answers = []
        for text, masks in zip(computed.texts, computed.results, strict=True):
            filled = await service.with_tokenizer(engine.write, text, masks, body.fills)
            answers.append(filled[0] if len(filled) == 1 else filled)
        return _json(answers if isinstance(body.inputs, list) else answers[0])


def _needs(engine: Engine, task: Task) -> Callable[[], Awaitable[None]]:
    async def check() -> None:  # FastAPI runs what is not async in another thread
        if engine.task != task:
            raise RequestError(422, f"this server answers /{engine.task}; for this path it should have {NEEDED[task]}")

    return check


def _embedder(service: Service) -> Embedder:
    assert isinstance(service.engine, Embedder)
    return service.engine


def _check_dimensions(engine: Embedder, dimensions: int | None) -> None:
    if dimensions is not None and dimensions != engine.dimensions:
        raise RequestError(
            422, f"dimensions is {dimensions}; it should be {engine.dimensions}, those of the model, or not be given"
        )


def _prompt(engine: Engine, name: str | None) -> str:
    if name is None:
        return engine.default_prompt
    if name not in engine.prompts:
        known = ", ".join(engine.prompts) or "not given, because the model has none"
        raise RequestError(422, f"prompt_name is {name!r}; it should be {known}")
    return engine.prompts[name]


def _listed(inputs: str | list[str]) -> list[str]:
    return inputs if isinstance(inputs, list) else [inputs]


def _vectors(computed: Computed, normalize: bool) -> np.ndarray:
    """`(texts, dimensions)` float32; of length 1 if `normalize`."""
    vectors = torch.stack(computed.results)
    return (torch.nn.functional.normalize(vectors, dim=-1) if normalize else vectors).numpy()


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _json(content: Any) -> Response:
    return Response(to_json(content), media_type="application/json")
