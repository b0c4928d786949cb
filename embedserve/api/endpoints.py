"""The small endpoints, and what all of them share: Service."""

from __future__ import annotations

import functools
import time

from starlette.requests import Request
from starlette.responses import Response

from embedserve import metrics
from embedserve.api import render
from embedserve.api.embeddings import Embeddings
from embedserve.api.request_body import RequestBodies
from embedserve.api.shared import Shared
from embedserve.api.tokenize import Tokenize
from embedserve.config.settings import Settings
from embedserve.engine.allowance import Allowance
from embedserve.engine.cache import VectorCache
from embedserve.engine.scheduler import Scheduler
from embedserve.http import body
from embedserve.http.memory_budget import MemoryBudget
from embedserve.http.readiness import Readiness
from embedserve.metrics import Metrics
from embedserve.model import providers
from embedserve.model.providers import PROVIDERS
from embedserve.model.registry import ModelRegistry, describe
from embedserve.processes.member import Member
from embedserve.system import memory


class Service:
    """The small endpoints and what all of them share. Owned by the event loop."""

    def __init__(
        self,
        settings: Settings,
        registry: ModelRegistry,
        lanes: int,
        readiness: Readiness,
        metrics: Metrics,
        member: Member | None = None,
    ) -> None:
        self.settings = settings
        self.readiness = readiness
        self.registry = registry
        self.metrics = metrics
        self.created = int(time.time())
        self._member = member
        self._scrapes, self._scraped = Allowance(), b""
        cache = VectorCache(settings.cache_mb * 1_000_000) if settings.cache_mb else None
        self.scheduler = Scheduler(
            registry.encoders(),
            lanes,
            providers.tokens_per_pass(settings),
            settings.max_wait,
            self.metrics,
            cache,
            PROVIDERS[settings.provider].tokenizers,
        )
        readiness.longest_stop = self.scheduler.longest_stop
        readiness.is_device_lost = lambda: self.scheduler.lost is not None
        self.metrics.watch("predicted_wait_seconds", self.scheduler.predicted_wait)
        self.metrics.watch("cache_bytes", lambda: cache.size if cache else 0)
        self.metrics.watch("ready", readiness.is_ready)
        self.metrics.watch("live", readiness.is_live)
        self.metrics.fix("lanes", lanes)
        self.metrics.fix("max_wait_seconds", settings.max_wait)
        self.metrics.fix("max_pending_bytes", settings.max_pending_mb * 1_000_000)
        self.budget = MemoryBudget(
            settings.max_pending_mb * 1_000_000, lambda: self.scheduler.offload.soon(memory.trim)
        )
        self.metrics.watch("pending_bytes", lambda: self.budget.bytes)
        self.bodies = RequestBodies(settings, takes_ids=registry.takes_ids)
        shared = Shared(settings, registry, self.scheduler, metrics, self.budget, self.bodies)
        self.embeddings = Embeddings(shared)
        self.tokenize = Tokenize(shared)
        register_metrics(registry, self.scheduler, self.metrics)

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
        if self._member is not None:
            merged = await self._member.merged_metrics()
            return Response(merged, media_type=metrics.CONTENT_TYPE)
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


def _json(content: bytes) -> Response:
    return Response(content, media_type=body.JSON)


def register_metrics(registry: ModelRegistry, scheduler: Scheduler, metrics: Metrics) -> None:
    """Make every series of every model."""
    for model in registry:
        manifest, shape = model.manifest, model.encoder.shape
        metrics.add_model(
            model.name,
            depth=functools.partial(scheduler.queue.depth, shape),
            fingerprint=manifest.fingerprint,
            dimension=str(manifest.dimension),
            max_tokens=str(manifest.max_tokens),
            precision=manifest.precision,
            provider=model.provider,
        )
