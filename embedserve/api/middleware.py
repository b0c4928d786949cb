"""Wraps every request: id, API key, access log line, the one exception handler."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedserve import logs
from embedserve.config.api_keys import Keys
from embedserve.config.settings import Settings
from embedserve.errors import ClientLeftError, RequestError
from embedserve.http.refusals import error_response, out_of_memory
from embedserve.http.request_id import given_id, request_ids
from embedserve.metrics import Metrics

log = logging.getLogger(__name__)
access_log = logging.getLogger(logs.ACCESS)

CLIENT_LEFT = 499  # nginx's status for it; nobody reads the answer
PROBES = ("/livez", "/readyz", "/health")
# Pages are opened by browsers, which ask for a key when they are told to.
PAGES = ("/", "/docs", "/openapi.json")
_EXPOSED = (
    "X-Request-Id",
    "X-Embedding-Fingerprint",
    "X-Embedding-Shape",
    "X-Embedding-Dtype",
    "X-Truncated-Inputs",
    "Server-Timing",
    "Retry-After",
    "retry-after-ms",
)


def wrapped(app: ASGIApp, settings: Settings, keys: Keys, metrics: Metrics) -> ASGIApp:
    """Wrap the router in the middleware that the settings ask for."""
    open_paths = frozenset((*PROBES, *(("/metrics",) if settings.open_metrics else ())))
    service = ServiceMiddleware(app, keys, open_paths, metrics.refused)
    if not settings.cors_origins:
        return service
    return Cors(service, settings.cors_origins, metrics.refused)


class ServiceMiddleware:
    """ASGI middleware around the router, with the one exception handler.

    Owned by the event loop.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        open_paths: frozenset[str],
        on_refusal: Callable[[str], None],
    ) -> None:
        self._app = app
        self._keys = keys
        self._open_paths = open_paths
        self._on_refusal = on_refusal
        self._ids = request_ids()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        request_id = given_id(scope) or next(self._ids).encode()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", request_id))
            await send(message)

        scope["app"] = self  # tells the router to raise what it cannot route
        try:
            self._check_key(scope)
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:  # the time to drain is over
            if status:
                raise
            late = RequestError("draining", "the server is shutting down")
            late.headers["Retry-After"] = "1"
            await _refusal(late, scope)(scope, receive, send_with_id)
        except Exception as error:
            answer = _answer(error, scope, request_id)
            if status:  # too late: the answer has begun
                raise
            await answer(scope, receive, send_with_id)
        finally:
            _log(scope, status, request_id, time.perf_counter() - start)

    def _check_key(self, scope: Scope) -> None:
        """401 before the body is read; what a client still sends of it is not."""
        if not self._keys or scope["path"] in self._open_paths:
            return
        if self._keys.accept(Headers(scope=scope).get("authorization")):
            return
        self._on_refusal("invalid_api_key")
        challenge = 'Basic realm="embedserve"' if scope["path"] in PAGES else "Bearer"
        raise RequestError(
            "invalid_api_key",
            "no valid API key; send Authorization: Bearer KEY",
            headers={"WWW-Authenticate": challenge, "Connection": "close"},
        )


class Cors(CORSMiddleware):
    """starlette's CORS; a preflight has the middleware of every request, but needs no key."""

    def __init__(
        self, app: ServiceMiddleware, origins: tuple[str, ...], on_refusal: Callable[[str], None]
    ) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=_EXPOSED,
            max_age=600,
        )
        self._preflights = ServiceMiddleware(
            self._answer_preflight, Keys(None), frozenset(), on_refusal
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _is_preflight(scope):
            await self._preflights(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def _answer_preflight(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = self.preflight_response(Headers(scope=scope))
        await response(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer OPTIONS with Access-Control-Request-Method."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        message = "this origin, method or header is not allowed; cors_origins names the origins"
        error = RequestError("invalid_value", message, "origin")
        return error_response(error)


def _is_preflight(scope: Scope) -> bool:
    """Whether a browser asks what it may send: OPTIONS with an Origin and the method it wants."""
    if scope["method"] != "OPTIONS":
        return False
    headers = Headers(scope=scope)
    return "origin" in headers and "access-control-request-method" in headers


def _answer(error: Exception, scope: Scope, request_id: bytes) -> Response:
    """The one exception handler: what a request gets for whatever was raised on its way."""
    if isinstance(error, RequestError):
        return _refusal(error, scope)
    if isinstance(error, MemoryError):
        return _refusal(out_of_memory(), scope)
    if isinstance(error, ClientLeftError):
        return Response(status_code=CLIENT_LEFT)
    if isinstance(error, HTTPException):
        return _refusal(_unrouted(error, scope), scope)
    log.error("request %s: internal error", request_id.decode("ascii"), exc_info=error)
    return _refusal(RequestError("internal_error", "internal error; see the server's log"), scope)


def _refusal(error: RequestError, scope: Scope) -> Response:
    """The answer to a request that is refused, noted in its trace."""
    if (trace := scope.get("state", {}).get("trace")) is not None:
        trace.code = error.code
    return error_response(error)


def _unrouted(error: HTTPException, scope: Scope) -> RequestError:
    """What the router raises: 405 for another method of a path, else 404."""
    method, path = scope["method"], scope["path"][:200]
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        message = f"{method} is not allowed on {path}; allowed: {allow}"
        return RequestError("method_not_allowed", message, None, {"Allow": allow})
    return RequestError("unknown_url", f"no such URL: {method} {path}")


def _log(scope: Scope, status: int, request_id: bytes, seconds: float) -> None:
    """One line a request: no query, no header, no input ever."""
    if not access_log.isEnabledFor(logging.INFO):
        return
    state = scope.get("state", {})
    fields = {
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": status,
        "ms": round(seconds * 1000, 2),
        "request_id": request_id.decode("ascii"),
        **state.get("access", {}),
    }
    if (trace := state.get("trace")) is not None:
        fields["trace_id"] = trace.id
    access_log.handle(logs.AccessRecord(fields))
