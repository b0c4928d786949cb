"""The front of a cluster: sends each request to a replica of its model, behind the middleware."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from embedserve.api import parse, render
from embedserve.api.middleware import wrapped
from embedserve.api.request_body import PARSE_ON_LOOP
from embedserve.api.routes import routes
from embedserve.cluster.exchange import Answer, Request
from embedserve.config.api_keys import Keys
from embedserve.config.settings import Settings
from embedserve.engine.cancellation import deadline_exceeded
from embedserve.errors import ClientLeftError, RequestError
from embedserve.http import body, deadline
from embedserve.http.memory_budget import MemoryBudget, Reservation
from embedserve.merged_metrics import merge
from embedserve.metrics import CONTENT_TYPE, Metrics

log = logging.getLogger(__name__)

# Names each process's series in the metrics of all.
LABEL = "replica"
# A replica answers 504 itself. If it cannot, the front does so this much later.
LATE_SECONDS = 1.0
# Time for replicas to answer a probe, and to return their metrics.
PROBE_SECONDS = 2.0
# Headers not passed to a replica, and headers not taken from its answer.
_NOT_SENT = (b"authorization", b"cookie", b"connection", b"transfer-encoding")
_NOT_TAKEN = (b"x-request-id",)


class LostError(Exception):
    """The replica that had the request is gone. Another can retry it: requests change nothing."""


class Pool(Protocol):
    """The replicas of one model."""

    async def ask(self, request: Request) -> Answer:
        """Let one replica answer. LostError if it is gone, RequestError if there is none.

        When this is cancelled, the replica learns that the client has left.
        """


class Scraped(Protocol):
    """Processes with metrics."""

    async def metrics(self) -> Mapping[str, bytes]:
        """Return each process's metrics by its name."""


@dataclass(frozen=True, slots=True)
class Directory:
    """The models of the cluster: names in the order they are listed, owners, and pools.

    An alias has the pool of its model. `models` are those of `names` that are not aliases.
    `processes` are those with metrics: each model's replicas, and the fronts.
    """

    names: Sequence[str]
    models: Sequence[str]
    owners: Mapping[str, str]
    pools: Mapping[str, Pool]
    processes: Sequence[Scraped]

    def pool(self, name: str | None) -> Pool:
        """Return the pool of a name; for any other the first, whose replica answers or refuses."""
        found = self.pools.get(name) if name is not None else None
        return found or self.pools[self.models[0]]


class Front:
    """Every endpoint of the service, over pools of replicas. Owned by the event loop."""

    def __init__(self, settings: Settings, directory: Directory, metrics: Metrics) -> None:
        self._settings = settings
        self._directory = directory
        self._metrics = metrics
        self._created = int(time.time())
        self._budget = MemoryBudget(settings.max_pending_mb * 1_000_000)
        metrics.watch("pending_bytes", lambda: self._budget.bytes)
        metrics.fix("max_pending_bytes", settings.max_pending_mb * 1_000_000)
        self.embeddings = self.tokenize = _Endpoint(self._create)
        self.get_model = _Endpoint(self._get_model)

    async def _create(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST embeddings and tokenize: send to the pool of the body's `model`.

        A replica counts the requests that it answers; the front counts the others.
        """
        headers = body.headers(scope)
        reservation = Reservation(self._budget)
        outcomes = self._metrics.nameless
        try:
            content = bytes(await body.read(receive, headers, self._settings, reservation))
            is_small = len(content) <= PARSE_ON_LOOP
            named = parse.named_model
            name = named(content) if is_small else await asyncio.to_thread(named, content)
            answer = await self._ask(self._directory.pool(name), scope, content)
            await _send(answer, scope, send)
        except (asyncio.CancelledError, ClientLeftError):
            outcomes["cancelled"].inc()
            raise
        except Exception as error:
            outcomes[error.code if isinstance(error, RequestError) else "internal_error"].inc()
            raise
        finally:
            reservation.release()

    async def _get_model(self, scope: Scope, receive: Receive, send: Send) -> None:
        """GET models/{name}, from a replica of it."""
        pool = self._directory.pool(scope["path_params"]["name"])
        await _send(await self._ask(pool, scope, b""), scope, send)

    async def list_models(self, request: HttpRequest) -> Response:
        return _json({"object": "list", "data": self._directory.names})

    async def list_models_openai(self, request: HttpRequest) -> Response:
        data = [
            {
                "id": name,
                "object": "model",
                "created": self._created,
                "owned_by": self._directory.owners[name],
            }
            for name in self._directory.names
        ]
        return _json({"object": "list", "data": data})

    async def get_metrics(self, request: HttpRequest) -> Response:
        scrapes = await asyncio.gather(*(p.metrics() for p in self._directory.processes))
        texts = {name: text for scrape in scrapes for name, text in scrape.items()}
        content = await asyncio.to_thread(merge, texts, LABEL)  # milliseconds for each process
        return Response(content, media_type=CONTENT_TYPE)

    async def live(self, request: HttpRequest) -> Response:
        return _json({"status": "ok"})

    async def ready(self, request: HttpRequest) -> Response:
        """200 when a replica of every model answers."""
        probe = Request("GET", "/readyz", [])
        for name in self._directory.models:
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    found = await self._directory.pools[name].ask(probe)
            except (TimeoutError, LostError, RequestError):
                found = None
            if found is None or found.status != 200:
                message = f"no replica of {name} is ready"
                raise RequestError("not_ready", message, headers={"Retry-After": "1"})
        return _json({"status": "ok", "models": self._directory.names})

    async def _ask(self, pool: Pool, scope: Scope, content: bytes) -> Answer:
        headers = [(k, v) for k, v in scope["headers"] if k not in _NOT_SENT]
        request = Request(scope["method"], scope["path"], headers, content)
        seconds = self._settings.request_timeout
        with contextlib.suppress(RequestError):  # the replica will report it
            seconds = deadline.deadline(dict(headers), seconds)
        try:
            async with asyncio.timeout(seconds + LATE_SECONDS):
                return await _twice(pool, request)
        except TimeoutError:
            raise deadline_exceeded() from None


def create_app(settings: Settings, directory: Directory, keys: Keys, metrics: Metrics) -> ASGIApp:
    """Build the ingress application: the routes and middleware of `embedserve serve`."""
    front = Front(settings, directory, metrics)
    router = Router(routes(front, settings.max_inputs), redirect_slashes=False)
    return _at_root(wrapped(_leaving(router), settings, keys, metrics))


def _leaving(app: ASGIApp) -> ASGIApp:
    """Turn a cancellation into ClientLeftError: Ray cancels a request whose client has left."""

    async def left(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            raise ClientLeftError from None

    return left


def _at_root(app: ASGIApp) -> ASGIApp:
    """Remove the application's `route_prefix` from every path."""

    async def stripped(scope: Scope, receive: Receive, send: Send) -> None:
        if root := scope.get("root_path"):
            path = scope["path"].removeprefix(root) or "/"
            scope = {**scope, "path": path, "root_path": ""}
        await app(scope, receive, send)

    return stripped


class _Endpoint:
    """Makes a method an ASGI application; starlette's Route takes a bare one for a handler."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


async def _twice(pool: Pool, request: Request) -> Answer:
    """Ask again once if a replica is lost; a request that kills its process kills two at most."""
    try:
        return await pool.ask(request)
    except LostError as error:
        log.warning(
            "a replica was lost while it handled a request; asking another: %r", error.__cause__
        )
    try:
        return await pool.ask(request)
    except LostError:
        message = "two replicas in a row were lost while they handled this request"
        raise RequestError("not_ready", message, headers={"Retry-After": "1"}) from None


async def _send(answer: Answer, scope: Scope, send: Send) -> None:
    if answer.access:
        scope.setdefault("state", {})["access"] = answer.access
    headers = [(k, v) for k, v in answer.headers if k not in _NOT_TAKEN]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _json(content: Mapping[str, object]) -> Response:
    return Response(render.render(content), media_type=body.JSON)
