"""Routes and endpoints: create_app(settings, registry)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive

from embedserve import __version__, body, metrics, models, schemas
from embedserve.body import Headers
from embedserve.errors import ClientLeftError, RequestError
from embedserve.frame import PROBES, Cors, Frame
from embedserve.keys import Keys
from embedserve.metrics import Metrics
from embedserve.models import Embedded, Model, ModelRegistry
from embedserve.schemas import EmbeddingsRequest
from embedserve.settings import Settings
from embedserve.worker import Worker

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
        headers = body.headers(request.scope)
        outcome, series = "ok", None
        try:
            content = await body.read(request.receive, headers, self.settings)
            wanted = schemas.parse_embeddings(content, self.settings.max_inputs)
            model, wanted = self.registry.resolve(wanted)
            series = self.metrics.of(model.name)
            series.requests_in_flight.inc()
            return await self._embed(request, headers, model, wanted)
        except (RequestError, ClientLeftError) as error:
            outcome = error.code if isinstance(error, RequestError) else "cancelled"
            raise
        except Exception:
            outcome = "internal_error"
            raise
        finally:
            if series is None:
                self.metrics.nameless[outcome].inc()
            else:
                series.requests[outcome].inc()
                series.requests_in_flight.dec()
                series.request_duration.observe(time.perf_counter() - start)

    async def create_tokens(self, request: Request) -> Response:
        headers = body.headers(request.scope)
        content = await body.read(request.receive, headers, self.settings)
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

    async def _embed(
        self, request: Request, headers: Headers, model: Model, wanted: EmbeddingsRequest
    ) -> Response:
        _check_fingerprint(headers, model)
        timeout = body.deadline(headers, self.settings.request_timeout)
        embedded = await model.embed(
            wanted,
            self.worker,
            self.settings.max_request_tokens,
            functools.partial(_disconnect, request.receive),
            asyncio.get_running_loop().time() + timeout,
        )
        self._count(request, model, embedded)
        return await self._answer(headers, model, wanted, embedded)

    async def _answer(
        self, headers: Headers, model: Model, wanted: EmbeddingsRequest, embedded: Embedded
    ) -> Response:
        answer = _headers(embedded, model.manifest.fingerprint)
        if headers.get(b"accept", b"").strip().lower() == schemas.OCTET_STREAM.encode():
            n, dim = embedded.rows.shape
            answer |= {"X-Embedding-Shape": f"{n},{dim}", "X-Embedding-Dtype": "float32"}
            octets = schemas.render_octets(embedded.rows)
            return Response(octets, headers=answer, media_type=schemas.OCTET_STREAM)

        def render() -> bytes:
            return schemas.render_embeddings(
                wanted.model or model.name,
                embedded.rows,
                embedded.tokens,
                embedded.truncated,
                wanted.encoding_format,
            )

        on_loop = embedded.rows.size <= RENDER_ON_LOOP
        content = render() if on_loop else await self.worker.encode(render)
        return Response(content, headers=answer, media_type=body.JSON)

    def _count(self, request: Request, model: Model, embedded: Embedded) -> None:
        texts, series = len(embedded.rows), self.metrics.of(model.name)
        series.texts.inc(texts)
        series.tokenization_duration.observe(embedded.tokenize)
        if embedded.truncated:
            series.truncated_texts.inc(len(embedded.truncated))
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
    async def lifespan(app: ASGIApp) -> AsyncIterator[None]:
        yield
        service.worker.close()

    # A slash too many is 404: the redirect's Location would be made from the client's Host.
    router = Router(routes(service), redirect_slashes=False, lifespan=lifespan)
    open_paths = frozenset((*PROBES, *(("/metrics",) if settings.open_metrics else ())))
    framed: ASGIApp = Frame(router, keys or Keys(None), open_paths)
    return Cors(framed, settings.cors_origins) if settings.cors_origins else framed


def routes(service: Service) -> list[Route]:
    """Every route, the busiest first: they are tried in order.

    The two surfaces over the same models differ in GET models alone.
    """
    return [
        Route("/v1/embeddings", service.create_embeddings, methods=["POST"]),
        Route("/openai/v1/embeddings", service.create_embeddings, methods=["POST"]),
        Route("/v1/models", service.list_models),
        Route("/openai/v1/models", service.list_models_openai),
        Route("/v1/models/{name}", service.get_model),
        Route("/openai/v1/models/{name}", service.get_model),
        Route("/v1/tokenize", service.create_tokens, methods=["POST"]),
        Route("/metrics", service.get_metrics),
        Route("/livez", service.live),
        Route("/readyz", service.ready),
        Route("/health", service.ready),
    ]


def _json(content: bytes) -> Response:
    return Response(content, media_type=body.JSON)


def _check_fingerprint(headers: Headers, model: Model) -> None:
    expected = headers.get(b"x-expect-fingerprint")
    found = model.manifest.fingerprint
    if expected is not None and expected != found.encode():
        text = expected[:64].decode("latin-1")
        raise RequestError(
            "fingerprint_mismatch",
            f"X-Expect-Fingerprint is {text!r}; {model.name} has {found}",
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
