"""Whole requests and whole answers as values, with an ASGI application in between."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Scope

RawHeaders = list[tuple[bytes, bytes]]
# Time for a request to end after its client left. The running operator ends within a second.
LEAVING_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Request:
    """What a client sent, as bytes; passed between processes."""

    method: str
    path: str
    headers: RawHeaders
    body: bytes = b""

    def scope(self) -> Scope:
        """Return its ASGI scope."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "scheme": "http",
            "method": self.method,
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": self.headers,
            "client": None,
            "server": None,
            "state": {},
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """What the application answered, and more fields for the access log line."""

    status: int
    headers: RawHeaders
    body: bytes
    access: Mapping[str, object] = field(default_factory=dict)


async def answer(app: ASGIApp, request: Request) -> Answer:
    """Let `app` answer. Cancelling this tells `app` that its client has left."""
    exchange = _Exchange(request)
    work = asyncio.ensure_future(app(exchange.scope, exchange.receive, exchange.send))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        exchange.left.set()
        await asyncio.wait([work], timeout=LEAVING_SECONDS)
        raise
    return exchange.answer()


class _Exchange:
    """The two callables of ASGI over a whole request. Owned by the event loop."""

    def __init__(self, request: Request) -> None:
        self.scope = request.scope()
        self.left = asyncio.Event()
        self._body: bytes | None = request.body
        self._status = 0
        self._headers: RawHeaders = []
        self._parts: list[bytes] = []

    async def receive(self) -> Message:
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], list(message["headers"])
        elif part := message.get("body"):
            self._parts.append(part)

    def answer(self) -> Answer:
        access = self.scope["state"].get("access", {})
        return Answer(self._status, self._headers, b"".join(self._parts), access)
