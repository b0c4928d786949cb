"""Middleware of Ray Serve's HTTP proxy: makes Ray's own answers look like this service's.

Every proxy loads it if RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names `middlewares` when
the nodes start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedserve.cluster.exchange import RawHeaders
from embedserve.errors import RequestError
from embedserve.http.refusals import error_response
from embedserve.http.request_id import given_id, request_ids

_OF_RAY = "/-/"  # Ray's own health and routes
_REQUEST_ID = b"x-request-id"
_AGAIN = {"Retry-After": "1", "retry-after-ms": "1000"}
# Status of Ray's answer in plain text -> this service's code and message.
ERRORS: Mapping[int, tuple[str, str]] = {
    404: ("unknown_url", "no application in this cluster serves this URL"),
    408: ("deadline_exceeded", "the request took longer than the proxy's request_timeout_s"),
    429: ("queue_full", "too many requests wait for a front"),
    503: ("not_ready", "no replica can take the request now"),
}
_PASSING = ("not_ready", "queue_full")
_LOST = RequestError("not_ready", "the process that had the request gave no answer", headers=_AGAIN)


class Translated:
    """ASGI middleware: sets one X-Request-Id, and sends JSON errors for Ray's text or silence."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._ids = request_ids()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_OF_RAY):
            await self._app(scope, receive, send)
            return
        # Ray passes the request's id on to the application, which answers with it.
        request_id = (_REQUEST_ID, given_id(scope) or next(self._ids).encode())
        scope = {**scope, "headers": [*_without_id(scope["headers"]), request_id]}
        error: RequestError | None = _LOST

        async def translate(message: Message) -> None:
            nonlocal error
            if message["type"] == "http.response.start":
                error = _error(message["status"], message["headers"])
                headers = [*_without_id(message["headers"]), request_id]
                message = {**message, "headers": headers}
            if error is None:
                await send(message)

        await self._app(scope, receive, translate)
        if error is not None:
            answer = error_response(error)
            answer.raw_headers.append(request_id)
            await answer(scope, receive, send)


def middlewares() -> list[Middleware]:
    """Return the middleware; each proxy of Ray Serve calls this when it starts."""
    return [Middleware(Translated)]


def _without_id(headers: Iterable[Sequence[bytes]]) -> RawHeaders:
    return [(name, value) for name, value in headers if name.lower() != _REQUEST_ID]


def _error(status: int, headers: Iterable[Sequence[bytes]]) -> RequestError | None:
    """Return what replaces Ray's own answer; None for an answer of the application."""
    text = any(k == b"content-type" and v.startswith(b"text/plain") for k, v in headers)
    if not text or status not in ERRORS:
        return None
    code, message = ERRORS[status]
    return RequestError(code, message, headers=_AGAIN if code in _PASSING else {})
