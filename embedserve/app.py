"""Routes, endpoints, exception handlers: create_app(settings, registry)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive

from embedserve import __version__, body, metrics, models, schemas
from embedserve.errors import ClientLeftError, RequestError
from embedserve.frame import PROBES, Cors, Frame, error_response
from embedserve.keys import Keys
from embedserve.metrics import Metrics
from embedserve.models import Embedded, Model, ModelRegistry
from embedserve.schemas import EmbeddingsRequest
from embedserve.settings import Settings
from embedserve.worker import Worker

CLIENT_LEFT = 499  # nginx's status for it; nobody reads the answer
# Rendering more floats than this takes over a millisecond: then it is done in a thread.
RENDER_ON_LOOP = 24 * 384
# At most this many bytes of indexes in X-Truncated-Inputs; usage.truncated has them all.
MAX_HEADER = 512


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
            content = await body.read(request, self.settings)
            wanted = schemas.parse_embeddings(content, self.settings.max_inputs)
            model, wanted = self.registry.resolve(wanted)
            label = model.name
            with self.metrics.requests_in_flight.labels(label).track_inprogress():
                return await self._embed(request, model, wanted)
        except RequestError as error:
            outcome = error.code
            raise
        except (ClientLeftError, ClientDisconnect):
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

    async def create_tokens(self, request: Request) -> Response:
        content = await body.read(request, self.settings)
        wanted = schemas.parse_tokenize(content, self.settings.max_inputs)
        model, wanted = self.registry.resolve(wanted)
        tokens = await self.worker.encode(lambda: model.tokens(wanted))
        return _json(schemas.render_tokens(wanted.model or model.name, tokens))

    async def list_models(self, request: Request) -> Response:
        return _json(schemas.render({"object": "list", "data": self.registry.names()}))

    async def list_models_openai(self, request: Request) -> Response:
        data = [self._openai_model(name) for name in self.registry.names()]
        return _json(schemas.render({"object": "list", "data": data}))

    async def get_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        model, alias = self.registry.find(name)
        return _json(schemas.render({**self._openai_model(name), **models.describe(model, alias)}))

    async def get_metrics(self, request: Request) -> Response:
        return Response(self.metrics.render(), media_type=metrics.CONTENT_TYPE)

    async def live(self, request: Request) -> Response:
        return _json(b'{"status":"ok"}')

    async def ready(self, request: Request) -> Response:
        return _json(schemas.render({"status": "ok", "models": self.registry.names()}))

    async def _embed(self, request: Request, model: Model, wanted: EmbeddingsRequest) -> Response:
        _check_fingerprint(request, model)
        deadline = time.perf_counter() + body.deadline(request, self.settings.request_timeout)
        left = asyncio.ensure_future(_disconnect(request.receive))
        try:
            embedded = await model.embed(
                wanted, self.worker, self.settings.max_request_tokens, left, deadline
            )
            response = await self._answer(request, model, wanted, embedded)
        finally:
            left.cancel()
        self._count(request, model, embedded)
        return response

    async def _answer(
        self, request: Request, model: Model, wanted: EmbeddingsRequest, embedded: Embedded
    ) -> Response:
        headers = _headers(embedded, model.manifest.fingerprint)
        if request.headers.get("accept", "").strip().lower() == schemas.OCTET_STREAM:
            n, dim = embedded.rows.shape
            headers |= {"X-Embedding-Shape": f"{n},{dim}", "X-Embedding-Dtype": "float32"}
            content = schemas.render_octets(embedded.rows)
            return Response(content, headers=headers, media_type=schemas.OCTET_STREAM)

        def render() -> bytes:
            return schemas.render_embeddings(
                wanted.model or model.name,
                embedded.rows,
                embedded.tokens,
                embedded.truncated,
                wanted.encoding_format,
            )

        on_loop = embedded.rows.size <= RENDER_ON_LOOP
        answer = render() if on_loop else await self.worker.encode(render)
        return Response(answer, headers=headers, media_type=body.JSON)

    def _count(self, request: Request, model: Model, embedded: Embedded) -> None:
        texts = len(embedded.rows)
        self.metrics.texts.labels(model.name).inc(texts)
        self.metrics.truncated_texts.labels(model.name).inc(len(embedded.truncated))
        self.metrics.tokenization_duration.labels(model.name).observe(embedded.tokenize)
        request.state.access = {"model": model.name, "texts": texts, "tokens": embedded.tokens}

    def _openai_model(self, name: str) -> dict[str, object]:
        repository = self.registry.find(name)[0].manifest.repository or ""
        owner = repository.split("/")[0] or "embedserve"
        return {"id": name, "object": "model", "created": self.created, "owned_by": owner}


def create_app(
    settings: Settings, registry: ModelRegistry, lanes: int, keys: Keys | None = None
) -> ASGIApp:
    """Build the application over loaded models; `lanes` inference threads."""
    service = Service(settings, registry, lanes)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        service.worker.close()

    handlers = {
        RequestError: answer_request_error,
        HTTPException: answer_http_exception,
        ClientLeftError: answer_client_left,
        ClientDisconnect: answer_client_left,
    }
    app = Starlette(
        routes=routes(service),
        lifespan=lifespan,
        exception_handlers=cast("dict[object, Callable[..., Awaitable[Response]]]", handlers),
    )
    # A slash too many is 404: the redirect's Location would be made from the client's Host.
    app.router.redirect_slashes = False
    open_paths = frozenset((*PROBES, *(("/metrics",) if settings.open_metrics else ())))
    framed: ASGIApp = Frame(app, keys or Keys(None), open_paths)
    return Cors(framed, settings.cors_origins) if settings.cors_origins else framed


def routes(service: Service) -> list[Route]:
    """Every route: the two surfaces over the same models differ in GET models alone."""
    both = [
        Route(f"{surface}{path}", endpoint, methods=[method])
        for surface in ("/v1", "/openai/v1")
        for path, endpoint, method in (
            ("/models/{name}", service.get_model, "GET"),
            ("/embeddings", service.create_embeddings, "POST"),
        )
    ]
    return [
        Route("/v1/models", service.list_models),
        Route("/openai/v1/models", service.list_models_openai),
        *both,
        Route("/v1/tokenize", service.create_tokens, methods=["POST"]),
        Route("/metrics", service.get_metrics),
        Route("/livez", service.live),
        Route("/readyz", service.ready),
        Route("/health", service.ready),
    ]


async def answer_request_error(request: Request, error: RequestError) -> Response:
    """RequestError -> OpenAI's error body."""
    return error_response(error)


async def answer_http_exception(request: Request, error: HTTPException) -> Response:
    """Starlette's own 404 and 405 -> OpenAI's error body."""
    path = request.scope["path"][:200]
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        message = f"{request.method} is not allowed on {path}; {allow} is"
        return error_response(RequestError("method_not_allowed", message, None, {"Allow": allow}))
    message = f"no such URL: {request.method} {path}"
    return error_response(RequestError("unknown_url", message))


async def answer_client_left(request: Request, error: Exception) -> Response:
    """Nobody reads this answer."""
    return Response(status_code=CLIENT_LEFT)


def _json(content: bytes) -> Response:
    return Response(content, media_type=body.JSON)


def _check_fingerprint(request: Request, model: Model) -> None:
    expected = request.headers.get("x-expect-fingerprint")
    found = model.manifest.fingerprint
    if expected is not None and expected != found:
        raise RequestError(
            "fingerprint_mismatch",
            f"X-Expect-Fingerprint is {expected[:64]!r}; {model.name} has {found}",
            "x-expect-fingerprint",
        )


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
    """0,3,17 shortened to what a header may hold."""
    text = ",".join(map(str, indexes))
    return text if len(text) <= MAX_HEADER else text[:MAX_HEADER].rpartition(",")[0] + ",..."
