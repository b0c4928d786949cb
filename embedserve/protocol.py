"""HTTP/1.1 on one connection: uvicorn's httptools protocol with limits, deadlines and JSON errors.

What httptools parses it accepts in any size and at any pace; here a head has bounds in bytes,
fields and time, a client that does not read is cut off, and what cannot be parsed gets the error
body of every other failure.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from embedserve import schemas
from embedserve.errors import RequestError
from embedserve.frame import error_response, out_of_memory, request_ids
from embedserve.metrics import Metrics
from embedserve.readiness import Readiness

MAX_HEAD_BYTES = 32_768  # request line and header fields together
MAX_URL_BYTES = 8_192
MAX_FIELDS = 100
HEAD_SECONDS = 10.0  # from the first byte of a request (or the connection) to its last field
# For a client that stops reading its answer. The kernel takes more in steps of about a third of its
# send buffer, so a client that reads less than some 50 KB/s of a big answer counts as stopped.
WRITE_SECONDS = 30.0
# A process that was stopped finds timers due before it has read what came meanwhile: then they give
# it time for that.
AGAIN_SECONDS = 0.05
# A client that still sends is read on for so long after a refusal, so that it can read the answer:
# closing at once would reset the connection under it.
LINGER_SECONDS = 2.0
# Dropping costs next to nothing; a reset overtakes the answer on its way to whoever sends fast.
LINGER_BYTES = 67_108_864

log = logging.getLogger(__name__)

_REASONS = {
    431: "Request Header Fields Too Large",
    400: "Bad Request",
    408: "Request Timeout",
    414: "URI Too Long",
    503: "Service Unavailable",
}


class Protocol(HttpToolsProtocol):
    """One connection. Owned by the event loop."""

    # Apart from the parent's attributes, which are just few enough for the dictionary's keys to be
    # shared by all connections: two of the six kilobytes of an idle one.
    __slots__ = (
        "_discarded",
        "_ids",
        "_in_head",
        "_lingering",
        "_max_connections",
        "_on_refusal",
        "_progressed",
        "_quiet_bytes",
        "_readiness",
        "_refusal",
        "_timer",
        "_write_timer",
    )

    def __init__(
        self,
        *arguments: Any,
        max_connections: int,
        readiness: Readiness,
        on_refusal: Callable[[str], None],
        ids: Iterator[str],
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._readiness = readiness
        self._on_refusal = on_refusal
        self._ids = ids
        self._max_connections = max_connections
        self._timer: asyncio.TimerHandle | None = None  # head or linger, whichever is due
        self._write_timer: asyncio.TimerHandle | None = None
        self._in_head = False
        self._progressed = False
        self._quiet_bytes = 0
        self._lingering = False
        self._refusal: RequestError | None = None
        self._discarded = 0
        self.pipeline = _EMPTY

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _Lingering(transport, self)))
        self.flow = _Flow(self.transport)
        if len(self.connections) > self._max_connections:
            self._refuse(
                RequestError(
                    "too_many_connections",
                    f"more than {self._max_connections} connections are open; try again later",
                    headers={"Retry-After": "1"},
                )
            )
        else:
            self._arm(HEAD_SECONDS, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._stop_write_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                self.transport.abort()
            return
        self._unset_keepalive_if_required()
        self._progressed = False
        self._feed(data)
        # Bytes of one head, of trailers or between requests: what brings neither a new request
        # nor a piece of a body.
        self._quiet_bytes = 0 if self._progressed else self._quiet_bytes + len(data)
        if self._quiet_bytes > MAX_HEAD_BYTES:
            self._refusal = self._refusal or self._too_large()
        if self._refusal is not None:
            self._refuse(self._refusal)
        elif self._timer is None and (self._in_head or not self._is_answering()):
            # A head that is not whole yet, or line breaks between requests; most heads come in one
            # piece and need no timer.
            self._arm(HEAD_SECONDS, self._late)

    def _feed(self, data: bytes) -> None:
        while data and self._refusal is None:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                data = self._decline(data[offer.args[0] :])
            except httptools.HttpParserError as error:
                self._refusal = self._refusal or (
                    out_of_memory()
                    if isinstance(error.__context__, MemoryError)
                    else _unparsable("the request is not valid HTTP/1.1")
                )

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = self._progressed = True
        self._disarm()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers are no headers (RFC 9110, 6.5.1)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._disarm()
        if self._refusal is None:  # else a request before this one in the same segment was refused
            self._refusal = self._check_head()
        if self._refusal is None and not self.parser.should_upgrade():
            if self.pipeline is _EMPTY and self._is_answering():
                self.pipeline = deque()
            super().on_headers_complete()
            if self._readiness.draining:
                self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._progressed = True
        if self._refusal is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._refusal is None and not self.parser.should_upgrade():
            super().on_message_complete()

    def wind_up(self, grace: float) -> None:
        """Let the next answer be the last; close when nothing came for `grace` seconds.

        An answer that has begun without `Connection: close` is not the last: its client may be
        sending the next request already.
        """
        if self._is_answering():
            if not self.cycle.response_started:
                self.cycle.keep_alive = False
            return
        idle, seconds = self.timeout_keep_alive_task, float(self.timeout_keep_alive)
        if idle is None:  # nothing came on it yet
            idle, seconds = self._timer, HEAD_SECONDS
        if idle is None or self._in_head or self._lingering:
            return
        if self.loop.time() - (idle.when() - seconds) >= grace:
            self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.cycle.more_body and not self._is_answering():
            # An idle connection holds nothing of its last request: half of its memory.
            self.cycle = self.scope = self.headers = None  # type: ignore[assignment]  # as at first

    def _decline(self, rest: bytes) -> bytes:
        """Return a request that offers another protocol as if it did not, `rest` after its head.

        The parser takes what follows such a head for the other protocol. Java's client offers
        HTTP/2 in this way with each first request.
        """
        if self.parser.get_method() == b"CONNECT":
            self._refusal = _unparsable("CONNECT is not served")
            return b""
        fields = [f for f in self.headers if f[0] not in (b"connection", b"upgrade")]
        line = b"%b %b HTTP/1.1\r\n" % (self.parser.get_method(), self.url)
        head = line + b"".join(b"%b: %b\r\n" % field for field in fields)
        self.parser = httptools.HttpRequestParser(self)
        return head + b"\r\n" + rest

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_write_timer()
        self._watch_writing(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._stop_write_timer()
        if self.transport.is_closing():
            self.flush()  # the last of it has no other end
        super().resume_writing()

    def _watch_writing(self, waiting: int) -> None:
        """Cut the client off when it takes nothing for a while; a slow one takes something."""

        def look(again: bool) -> None:
            now = self.transport.get_write_buffer_size()
            if now < waiting:
                self._watch_writing(now)
            elif again:
                self._write_timer = self.loop.call_later(AGAIN_SECONDS, look, False)
            else:
                self.transport.abort()

        self._write_timer = self.loop.call_later(WRITE_SECONDS, look, True)

    def flush(self) -> None:
        """Watch a closing connection until everything is sent, or the client takes nothing."""
        self._stop_write_timer()
        self._watch_writing(self.transport.get_write_buffer_size())

    @property
    def lingering(self) -> bool:
        """Whether the last answer is sent and the rest is only read to be dropped."""
        return self._lingering

    def linger(self) -> None:
        """Close what is sent; read on for a while what the client still sends, and drop it."""
        self._lingering = True
        self.pipeline.clear()
        self._refusal = self._refusal or _unparsable("the connection is closing")
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._arm(LINGER_SECONDS, self.transport.abort)

    def unfinished(self) -> bool:
        """Whether the client has still to send what it has begun."""
        return self._in_head or (self.cycle is not None and self.cycle.more_body)

    def _check_head(self) -> RequestError | None:
        size, hosts = len(self.url), 0
        for name, value in self.headers:
            size += len(name) + len(value)
            hosts += name == b"host"
        if len(self.url) > MAX_URL_BYTES or len(self.headers) > MAX_FIELDS or size > MAX_HEAD_BYTES:
            return self._too_large()
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() != "1.0"):
            return _unparsable(f"the request has {hosts} Host fields; exactly one is accepted")
        return None

    def _too_large(self) -> RequestError:
        if len(self.url) > MAX_URL_BYTES:
            return RequestError("uri_too_long", f"the URL has more than {MAX_URL_BYTES} bytes")
        return RequestError(
            "headers_too_large",
            f"the header has more than {MAX_HEAD_BYTES} bytes or {MAX_FIELDS} fields",
        )

    def _late(self) -> None:
        if self._in_head:
            self._refuse(
                RequestError(
                    "request_timeout", f"the header did not arrive within {HEAD_SECONDS:g} s"
                )
            )
        else:  # it connected and sent nothing
            self.transport.abort()

    def _refuse(self, error: RequestError) -> None:
        """Answer on the connection itself and close; after other answers, in its turn."""
        if self._lingering:
            return
        self._refusal = error
        if "x-request-id" not in error.headers:  # else it was refused before, and waits
            error.headers["x-request-id"] = next(self._ids)
            self._on_refusal(error.code)
        if self.pipeline and self._is_answering():  # the newest request waits behind another
            self.pipeline[0] = (self.cycle, error_response(error))  # type: ignore[assignment]
            self.cycle.keep_alive = False
            return
        if self._is_answering():
            if self.cycle.response_started or not self.cycle.more_body:
                self.cycle.keep_alive = False  # an answer is on its way: it is the last
                return
            self.cycle.disconnected = True  # its body will never be whole
            self.cycle.message_event.set()
        log.info("refused: %s %s", error.code, error.headers["x-request-id"])
        self.transport.write(_answer(error))
        self.linger()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _arm(self, seconds: float, action: Any) -> None:
        def due() -> None:
            self._timer = self.loop.call_later(AGAIN_SECONDS, action)

        self._disarm()
        self._timer = self.loop.call_later(seconds, due)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


class _Flow(FlowControl):
    """uvicorn's flow control, whose event is made when somebody has to wait for it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = self.write_paused = False

    async def drain(self) -> None:
        """Wait until the client has taken what was written."""
        if self.write_paused:
            await self._is_writable_event.wait()

    def pause_writing(self) -> None:
        if not self.write_paused:
            self.write_paused = True
            self._is_writable_event = asyncio.Event()

    def resume_writing(self) -> None:
        if self.write_paused:
            self.write_paused = False
            self._is_writable_event.set()


# No request waits behind another: the same for all connections, and never written to.
_EMPTY: deque[Any] = deque()


class _Lingering:
    """A transport whose close lets a client that still sends read its answer first."""

    def __init__(self, transport: asyncio.Transport, protocol: Protocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self.write = transport.write  # the busiest method, without a detour

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._protocol.lingering or self._transport.is_closing()

    def close(self) -> None:
        if self._transport.is_closing() or self._protocol.lingering:
            self._transport.close()
        elif self._protocol.unfinished():
            self._protocol.linger()
        else:
            self._transport.close()
            self._protocol.flush()


def protocol_class(max_connections: int, readiness: Readiness, metrics: Metrics) -> Any:
    """Return what uvicorn calls for each connection."""
    return partial(
        Protocol,
        max_connections=max_connections,
        readiness=readiness,
        on_refusal=metrics.refused,
        ids=request_ids(),
    )


def _unparsable(message: str) -> RequestError:
    return RequestError("invalid_http", message)


def _answer(error: RequestError) -> bytes:
    content = schemas.render_error(error)
    fields = {
        **error.headers,
        "content-type": "application/json",
        "content-length": str(len(content)),
        "connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    reason = _REASONS.get(error.status, "Error")
    return f"HTTP/1.1 {error.status} {reason}\r\n{head}\r\n".encode("latin-1") + content
