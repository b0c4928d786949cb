"""Routes and endpoints: create_app(settings, registry)."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from embedserve import body, metrics, providers, render, room
from embedserve.allowance import Allowance
from embedserve.cache import VectorCache
from embedserve.embeddings import Embeddings
from embedserve.frame import framed
from embedserve.intake import Intake
from embedserve.keys import Keys
from embedserve.metrics import Metrics
from embedserve.pending import Pending
from embedserve.providers import PROVIDERS
from embedserve.readiness import Readiness
from embedserve.registry import ModelRegistry, describe
from embedserve.routes import EMBEDDINGS, routes
from embedserve.settings import Settings
from embedserve.tokenize import Tokenize
from embedserve.worker import Worker

# A pass that nobody waits for is stopped between two operators: tens of milliseconds.
LANES_GRACE = 5.0


class Service:
    """The small endpoints and what all of them share. Owned by the event loop."""

    def __init__(
        self,
        settings: Settings,
        registry: ModelRegistry,
        lanes: int,
        readiness: Readiness,
        metrics: Metrics,
    ) -> None:
        self.settings = settings
        self.readiness = readiness
        self.registry = registry
        self.metrics = metrics
        self.created = int(time.time())
        self._scrapes, self._scraped = Allowance(), b""
        cache = VectorCache(settings.cache_mb * 1_000_000) if settings.cache_mb else None
        self.worker = Worker(
            registry.engines(),
            lanes,
            providers.tokens_per_pass(settings),
            settings.max_wait,
            self.metrics,
            cache,
            PROVIDERS[settings.provider].tokenizers,
        )
        readiness.longest_stop = self.worker.longest_stop
        readiness.is_device_lost = lambda: self.worker.lost is not None
        self.metrics.watch("predicted_wait_seconds", self.worker.predicted_wait)
        self.metrics.watch("cache_bytes", lambda: cache.size if cache else 0)
        self.metrics.watch("ready", readiness.is_ready)
        self.metrics.watch("live", readiness.is_live)
        self.metrics.fix("lanes", lanes)
        self.metrics.fix("max_wait_seconds", settings.max_wait)
        self.metrics.fix("max_pending_bytes", settings.max_pending_mb * 1_000_000)
        self.pending = Pending(
            settings.max_pending_mb * 1_000_000, lambda: self.worker.soon(room.trim)
        )
        self.metrics.watch("pending_bytes", lambda: self.pending.bytes)
        self.intake = Intake(settings, takes_ids=registry.takes_ids)
        self.embeddings = Embeddings(
            settings, registry, self.worker, self.metrics, self.pending, self.intake
        )
        self.tokenize = Tokenize(settings, registry, self.worker, self.pending, self.intake)
        register_metrics(registry, self.worker, self.metrics)

    async def list_models(self, request: Request) -> Response:
        return _json(render.render({"object": "list", "data": self.registry.names()}))

    async def list_models_openai(self, request: Request) -> Response:
        data = [self._openai_model(name) for name in self.registry.names()]
        return _json(render.render({"object": "list", "data": data}))

    async def get_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        facts = describe(*self.registry.find(name))
        return _json(render.render({**self._openai_model(name), **facts}))

    async def get_metrics(self, request: Request) -> Response:
        # Some 4 ms each: a flood of scrapes gets what was rendered tens of milliseconds ago.
        start = time.perf_counter()
        if self._scrapes.is_left(start):
            self._scraped = self.metrics.render()
            self._scrapes.spend(time.perf_counter() - start)
        return Response(self._scraped, media_type=metrics.CONTENT_TYPE)

    async def live(self, request: Request) -> Response:
        self.readiness.check_live()
        return _json(b'{"status":"ok"}')

    async def ready(self, request: Request) -> Response:
        self.readiness.check_ready()
        return _json(render.render({"status": "ok", "models": self.registry.names()}))

    def _openai_model(self, name: str) -> dict[str, object]:
        owner = self.registry.find(name)[0].manifest.owner
        return {"id": name, "object": "model", "created": self.created, "owned_by": owner}


def create_app(
    settings: Settings,
    registry: ModelRegistry,
    lanes: int,
    keys: Keys | None = None,
    readiness: Readiness | None = None,
    metrics: Metrics | None = None,
) -> ASGIApp:
    """Build the application over loaded models; `lanes` inference threads."""
    metrics = metrics or Metrics()
    service = Service(settings, registry, lanes, readiness or Readiness(), metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: ASGIApp) -> AsyncIterator[None]:
        yield
        service.intake.close()
        service.worker.close(LANES_GRACE)

    # A slash too many is 404: the redirect's Location would be made from the client's Host.
    router = Router(routes(service, settings.max_inputs), redirect_slashes=False, lifespan=lifespan)
    return framed(_shortcut(router, service), settings, keys or Keys(None), metrics)


def _shortcut(router: ASGIApp, service: Service) -> ASGIApp:
    """POST embeddings past the router, which costs a twentieth of the HTTP layer."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        is_embeddings = scope.get("path") in EMBEDDINGS and scope["method"] == "POST"
        await (service.embeddings if is_embeddings else router)(scope, receive, send)

    return app


def _json(content: bytes) -> Response:
    return Response(content, media_type=body.JSON)


def register_metrics(registry: ModelRegistry, worker: Worker, metrics: Metrics) -> None:
    """Make every series of every model."""
    for model in registry:
        manifest, shape = model.manifest, model.engine.shape
        metrics.add_model(
            model.name,
            depth=functools.partial(worker.queue.depth, shape),
            fingerprint=manifest.fingerprint,
            dimension=str(manifest.dimension),
            max_tokens=str(manifest.max_tokens),
            precision=manifest.precision,
            provider=model.provider,
        )
