"""Routes, endpoints, one exception handler: create_app(settings, registry)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedserve import __version__, metrics, models, schemas
from embedserve.config import Settings
from embedserve.errors import ClientLeftError, RequestError
from embedserve.metrics import Metrics
from embedserve.models import Embedded, Model, ModelRegistry
from embedserve.schemas import EmbeddingsRequest
from embedserve.worker import Worker

log = logging.getLogger(__name__)

JSON = "application/json"
CLIENT_LEFT = 499  # nginx's status for it; nobody reads the answer
# Rendering more floats than this takes over a millisecond: then it is done in a thread.
RENDER_ON_LOOP = 24 * 384
# At most this many bytes of indexes in X-Truncated-Inputs; usage.truncated has them all.
MAX_HEADER = 512
_REQUEST_ID = re.compile(r"[\w.-]{1,128}", re.ASCII)


class Service:
    """The endpoints and what they share. Owned by the event loop."""

    def __init__(self, settings: Settings, registry: ModelRegistry, lanes: int) -> None:
        self.settings = settings
        self.registry = registry
        self.metrics = Metrics()
        self.created = int(time.time())
        self.worker = Worker(
            registry.engines(),
            lanes,
            settings.tokens_per_pass,
            settings.max_wait,
            self.metrics,
        )
        models.register_metrics(registry, self.worker, self.metrics)

    async def create_embeddings(self, request: Request) -> Response:
        start = time.perf_counter()
        outcome, label = "ok", metrics.NO_MODEL
        try:
            body = await _body(request, self.settings)
            wanted = schemas.parse_embeddings(body, self.settings.max_inputs)
            model = self.registry.find(wanted.model)
            label = model.name
            with self.metrics.requests_in_flight.labels(label).track_inprogress():
                return await self._embed(request, model, wanted)
        except RequestError as error:
            outcome = error.code
            raise
        except ClientLeftError:
            outcome = "cancelled"
            raise
        except Exception:
            outcome = "internal_error"
            raise
        finally:
            self.metrics.requests.labels(label, outcome).inc()
            if label:
                duration = time.perf_counter() - start
                self.metrics.request_duration.labels(label).observe(duration)

    async def list_models(self, request: Request) -> Response:
        names = [model.name for model in self.registry]
        return _json({"object": "list", "data": names})

    async def list_models_openai(self, request: Request) -> Response:
        data = [self._openai_model(model) for model in self.registry]
        return _json({"object": "list", "data": data})

    async def get_model(self, request: Request) -> Response:
        model = self.registry.find(request.path_params["name"])
        return _json({**self._openai_model(model), **models.describe(model)})

    async def get_metrics(self, request: Request) -> Response:
        return Response(self.metrics.render(), media_type=metrics.CONTENT_TYPE)

    async def live(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        return _json({"status": "ok", "models": [model.name for model in self.registry]})

    async def _embed(self, request: Request, model: Model, wanted: EmbeddingsRequest) -> Response:
        fingerprint = model.manifest.fingerprint
        expected = request.headers.get("x-expect-fingerprint")
        if expected is not None and expected != fingerprint:
            raise RequestError(
                "fingerprint_mismatch",
                f"X-Expect-Fingerprint is {expected[:64]!r}; {model.name} has {fingerprint}",
            )
        timeout = _timeout(request, self.settings.request_timeout)
        deadline = time.perf_counter() + timeout
        left = asyncio.ensure_future(_disconnect(request.receive))
        try:
            embedded = await model.embed(
                wanted, self.worker, self.settings.max_request_tokens, left, deadline
            )
            content = await self._render(model, wanted, embedded)
        finally:
            left.cancel()
        self._count(model, embedded)
        return Response(content, headers=_headers(embedded, fingerprint), media_type=JSON)

    async def _render(self, model: Model, wanted: EmbeddingsRequest, embedded: Embedded) -> bytes:
        def render() -> bytes:
            return schemas.render_embeddings(
                model.name,
                embedded.rows,
                embedded.tokens,
                embedded.truncated,
                wanted.encoding_format,
            )

        return (
            render() if embedded.rows.size <= RENDER_ON_LOOP else await self.worker.encode(render)
        )

    def _count(self, model: Model, embedded: Embedded) -> None:
        self.metrics.texts.labels(model.name).inc(len(embedded.rows))
        self.metrics.truncated_texts.labels(model.name).inc(len(embedded.truncated))
        self.metrics.tokenization_duration.labels(model.name).observe(embedded.tokenize)

    def _openai_model(self, model: Model) -> dict[str, object]:
        repository = model.manifest.repository or model.name
        owner = repository.split("/")[0] if "/" in repository else "embedserve"
        return {"id": model.name, "object": "model", "created": self.created, "owned_by": owner}


def create_app(settings: Settings, registry: ModelRegistry, lanes: int) -> Starlette:
    """Build the application over loaded models; `lanes` inference threads."""
    service = Service(settings, registry, lanes)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        service.worker.close()

    routes = [
        Route("/v1/models", service.list_models),
        Route("/openai/v1/models", service.list_models_openai),
        Route("/v1/models/{name}", service.get_model),
        Route("/openai/v1/models/{name}", service.get_model),
        Route("/v1/embeddings", service.create_embeddings, methods=["POST"]),
        Route("/openai/v1/embeddings", service.create_embeddings, methods=["POST"]),
        Route("/metrics", service.get_metrics),
        Route("/livez", service.live),
        Route("/readyz", service.ready),
        Route("/health", service.ready),
    ]
    handlers = {
        RequestError: answer_request_error,
        HTTPException: answer_http_exception,
        ClientLeftError: answer_client_left,
        ClientDisconnect: answer_client_left,
    }
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers=cast("dict[object, Callable[..., Awaitable[Response]]]", handlers),
    )
    # A slash too many is 404: the redirect's Location would be made from the client's Host.
    app.router.redirect_slashes = False
    app.add_middleware(Frame)
    app.state.service = service
    return app


class Frame:
    """What every answer carries: a request id, and a JSON error body for a bug (500)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"].append((b"x-request-id", request_id))
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            log.exception("request %s: internal error", request_id.decode("ascii"))
            if started:
                raise
            error = RequestError("internal_error", "an internal error; it is in the server's log")
            await _error_response(error)(scope, receive, send_with_id)


async def answer_request_error(request: Request, error: RequestError) -> Response:
    """RequestError -> OpenAI's error body."""
    return _error_response(error)


async def answer_http_exception(request: Request, error: HTTPException) -> Response:
    """Starlette's own 404 and 405 -> OpenAI's error body."""
    path = request.scope["path"][:200]
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        message = f"{request.method} is not allowed on {path}; {allow} is"
        return _error_response(RequestError("method_not_allowed", message, None, {"Allow": allow}))
    message = f"no such URL: {request.method} {path}"
    return _error_response(RequestError("unknown_url", message))


async def answer_client_left(request: Request, error: Exception) -> Response:
    """Nobody reads this answer."""
    return Response(status_code=CLIENT_LEFT)


def _error_response(error: RequestError) -> Response:
    return Response(
        schemas.render_error(error),
        status_code=error.status,
        headers=error.headers,
        media_type=JSON,
    )


def _json(value: dict[str, object]) -> Response:
    return Response(schemas.render(value), media_type=JSON)


def _request_id(scope: Scope) -> bytes:
    """The client's X-Request-Id when it is well-formed, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value.decode("latin-1")):
            return cast(bytes, value)
    return f"req_{secrets.token_hex(12)}".encode("ascii")


async def _body(request: Request, settings: Settings) -> bytes:
    """Read the body within its limits; what is refused by its headers is not read."""
    headers = request.headers
    if headers.get("content-encoding", "identity") != "identity":
        raise RequestError(
            "unsupported_encoding",
            f"Content-Encoding is {headers['content-encoding'][:64]!r}; send the body uncompressed",
            headers={"Connection": "close"},
        )
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != JSON:
        raise RequestError(
            "unsupported_media_type",
            f"Content-Type is {media_type[:64]!r}; {JSON} is accepted",
            headers={"Connection": "close"},
        )
    length = headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length) > settings.max_body_bytes:
        raise _too_large(settings.max_body_bytes)
    try:
        async with asyncio.timeout(settings.max_body_seconds):
            return await _read(request, settings.max_body_bytes)
    except TimeoutError:
        raise RequestError(
            "request_timeout",
            f"the body did not arrive within {settings.max_body_seconds:g} s",
            headers={"Connection": "close"},
        ) from None


async def _read(request: Request, limit: int) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(limit: int) -> RequestError:
    return RequestError(
        "request_too_large",
        f"the body has more than {limit} bytes",
        headers={"Connection": "close"},
    )


def _timeout(request: Request, most: float) -> float:
    """Seconds this request may take: what the client asks for, bounded by the server's setting."""
    for header in ("x-request-timeout", "x-stainless-read-timeout"):
        text = request.headers.get(header)
        if text is None:
            continue
        try:
            seconds = float(text)
        except ValueError:
            seconds = -1.0
        if seconds > 0:  # a NaN is no number either
            return min(seconds, most)
        if header == "x-request-timeout":
            raise RequestError(
                "invalid_value", f"X-Request-Timeout is {text[:32]!r}; seconds above 0", header
            )
    return most


async def _disconnect(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _headers(embedded: Embedded, fingerprint: str) -> dict[str, str]:
    times = {
        "tokenize": embedded.tokenize,
        "queue": embedded.queue,
        "inference": embedded.inference,
    }
    headers = {
        "X-Embedding-Fingerprint": fingerprint,
        "Server-Timing": ", ".join(f"{k};dur={v * 1000:.2f}" for k, v in times.items()),
        "Server": f"embedserve/{__version__}",
    }
    if embedded.truncated:
        headers["X-Truncated-Inputs"] = _indexes(embedded.truncated)
    return headers


def _indexes(indexes: list[int]) -> str:
    """0, 3, 17 … shortened to what a header may hold."""
    text = ",".join(map(str, indexes))
    return text if len(text) <= MAX_HEADER else text[:MAX_HEADER].rpartition(",")[0] + ",..."
