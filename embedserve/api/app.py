"""The application: create_app(settings, registry)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from embedserve.api.endpoints import Service
from embedserve.api.middleware import wrapped
from embedserve.api.routes import EMBEDDINGS, routes
from embedserve.config.api_keys import Keys
from embedserve.config.settings import Settings
from embedserve.http.readiness import Readiness
from embedserve.metrics import Metrics
from embedserve.model.registry import ModelRegistry
from embedserve.processes.member import Member

# A pass that nobody waits for is stopped between two operators: tens of milliseconds.
LANES_GRACE = 5.0


def create_app(
    settings: Settings,
    registry: ModelRegistry,
    lanes: int,
    keys: Keys | None = None,
    readiness: Readiness | None = None,
    metrics: Metrics | None = None,
    member: Member | None = None,
) -> ASGIApp:
    """Build the application over loaded models; `lanes` inference threads.

    `member`: this process, where several serve.
    """
    metrics, readiness = metrics or Metrics(), readiness or Readiness()
    service = Service(settings, registry, lanes, readiness, metrics, member)

    @contextlib.asynccontextmanager
    async def lifespan(app: ASGIApp) -> AsyncIterator[None]:
        fingerprints = {model.name: model.manifest.fingerprint for model in registry}
        beside = None
        if member is not None:
            await member.begin(metrics, fingerprints)
            beside = asyncio.create_task(member.serve(metrics, readiness))
        yield
        if beside is not None:
            beside.cancel()
        service.bodies.close()
        service.scheduler.close(LANES_GRACE)

    # A slash too many is 404: the redirect's Location would be made from the client's Host.
    router = Router(routes(service, settings.max_inputs), redirect_slashes=False, lifespan=lifespan)
    return wrapped(_shortcut(router, service), settings, keys or Keys(None), metrics)


def _shortcut(router: ASGIApp, service: Service) -> ASGIApp:
    """POST embeddings past the router, which costs a twentieth of the HTTP layer."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        is_embeddings = scope.get("path") in EMBEDDINGS and scope["method"] == "POST"
        await (service.embeddings if is_embeddings else router)(scope, receive, send)

    return app
