"""HTTP/1.1 on one connection: uvicorn's httptools protocol with limits, deadlines and JSON errors.

httptools accepts a request of any size and speed. Here a head is limited in bytes, fields and time;
one request is parsed at a time; a client that does not read is cut off; what cannot be parsed gets
the usual error body.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from embedserve.errors import RequestError
from embedserve.http import refusals
from embedserve.http.client_left import KEY as CLIENT_LEFT
from embedserve.http.cycle import Cycle
from embedserve.http.departures import Departures
from embedserve.http.flow_control import BODY, REST, TURN, Flow
from embedserve.http.framing import (
    CHUNKED,
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    body_bytes,
    declined,
    find_end,
    too_large,
    unparsable,
)
from embedserve.http.loop_turns import LoopTurns
from embedserve.http.readiness import Readiness
from embedserve.http.refusals import out_of_memory
from embedserve.http.request_id import request_ids
from embedserve.http.transport import LARGE, SMALL, Buffered, Buffers, Lingering
from embedserve.metrics import Metrics

HEAD_SECONDS = 10.0  # from the first byte of a request (or the connection) to its last field
# For a client that stops reading its answer. The kernel takes more in steps of about a third of its
# send buffer, so a client that reads less than some 50 KB/s of a big answer counts as stopped.
WRITE_SECONDS = 30.0
# After a process was stopped, timers are due before it has read what arrived meanwhile. So a timer
# that is due waits this much longer.
AGAIN_SECONDS = 0.05
# After a refusal, keep reading this long from a client that still sends: closing at once would
# reset the connection before it reads the answer.
LINGER_SECONDS = 2.0
# Generous: discarding bytes costs next to nothing, and a reset could reach a fast sender before the
# answer does.
LINGER_BYTES = 67_108_864
# At most this many connections linger at a time, on top of max_connections; others are closed at
# once.
LINGERING = 100
# For a client that does not read, a transport holds this much and at most one answer. The client's
# next request is parsed only after it has read.
WRITE_BYTES = 8_192
# One turn of the loop parses at most this many pieces of a connection; a piece ends at an empty
# line, the end of a sized body, the head limit or the end of what was read.
PIECES = 64

log = logging.getLogger(__name__)

_REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    414: "URI Too Long",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    503: "Service Unavailable",
}


@dataclass(slots=True)
class Shared:
    """What all connections share. Owned by the event loop."""

    max_connections: int
    readiness: Readiness
    on_refusal: Callable[[str], None]
    ids: Iterator[str]
    buffers: Buffers
    departures: Departures
    turns: LoopTurns
    lingering: int = 0  # connections that are only read to be dropped


class Protocol(HttpToolsProtocol):
    """One connection. Owned by the event loop.

    One request is parsed at a time: what was read behind it, SMALL bytes at the most, waits as
    bytes until it is answered, and nothing more is read meanwhile.
    """

    # Slots, beside the parent's attributes. Those are just few enough for all connections to share
    # the dictionary's keys, which saves two of an idle connection's six kilobytes.
    __slots__ = (
        "_before",
        "_body_left",
        "_client_left",
        "_discarded",
        "_in_head",
        "_in_request",
        "_lingering",
        "_progressed",
        "_quiet_bytes",
        "_refusal",
        "_rest",
        "_shared",
        "_timer",
        "_write_timer",
    )

    flow: Flow
    url = b""  # until a request begins

    def __init__(self, *arguments: Any, shared: Shared, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._shared = shared
        self._timer: asyncio.TimerHandle | None = None  # head or linger, whichever is due
        self._write_timer: asyncio.TimerHandle | None = None
        self._in_request = False  # from its first byte to its last
        self._in_head = False
        self._body_left = 0  # bytes still to come, or CHUNKED
        self._client_left: asyncio.Future[None] | None = None  # of the request that is answered
        self._rest = b""  # what was read and waits
        self._before = b""  # the last bytes that were fed, where a head or chunks are not whole
        self._progressed = False
        self._quiet_bytes = 0
        self._lingering = False
        self._refusal: RequestError | None = None
        self._discarded = 0
        # Requests are parsed one at a time, so uvicorn's pipeline is not used.
        self.pipeline = ()  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, Lingering(transport, self)))
        self.flow = Flow(self.transport)
        transport.set_write_buffer_limits(high=WRITE_BYTES)
        if self._shared.departures.is_reset(self._descriptor()):
            # It left while it waited to be accepted, so what it sent is not parsed.
            transport.abort()
            return
        most = self._shared.max_connections
        if len(self.connections) - self._shared.lingering > most:
            self._refuse(
                RequestError(
                    "too_many_connections",
                    f"more than {most} connections are open; try again later",
                    headers={"Retry-After": "1"},
                )
            )
        else:
            self._arm(HEAD_SECONDS, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._stop_write_timer()
        self._unset_keepalive_if_required()
        self._release()
        if self._lingering:
            self._shared.lingering -= 1
        super().connection_lost(exc)
        self._leave()

    def eof_received(self) -> None:
        """Called when the client sends no more: it has left, and waits for no answer.

        The transport closes itself, after what is written already.
        """
        if self._is_answering():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self._leave()
        if self.transport.get_write_buffer_size():
            self.flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to read to, and so how much at most; called before each read."""
        buffers = self._shared.buffers
        if self._refusal is not None:
            return buffers.large
        return buffers.small if self._body_left <= SMALL else buffers.large[: self._body_left]

    def buffer_updated(self, count: int) -> None:
        """Take what was read."""
        if self._refusal is not None:
            self._discarded += count
            if self._discarded > LINGER_BYTES:
                self.transport.abort()
        else:
            self._unset_keepalive_if_required()
            data = bytes(self._shared.buffers.large[:count])
            self._consume(self._rest + data if self._rest else data)
        if count == LARGE or (count == SMALL and self._body_left == CHUNKED):
            # libuv would read on while there is something, before it looks at others.
            self.flow.pause(TURN)
            self._shared.turns.wait(self._read_on)

    def _consume(self, data: bytes) -> None:
        """Feed what belongs to the request that is being received; the rest waits."""
        start = pieces = 0
        while start < len(data) and pieces < PIECES and self._may_feed():
            if self._body_left > 0:
                end = min(len(data), start + self._body_left)
                self._body_left -= end - start
            else:
                end = min(
                    find_end(data, start, self._before),
                    start + MAX_HEAD_BYTES + 1 - self._quiet_bytes,
                )
            self._feed(data[start:end], end - start)
            start = end
            pieces += 1
        if self._refusal is not None:
            self._refuse(self._refusal)
            return
        if self._quiet_bytes or self._body_left == CHUNKED:
            self._before = (self._before + data[max(0, start - 3) : start])[-3:]
        if start < len(data):
            self._hold(data[start:])
            if pieces == PIECES:
                self._shared.turns.wait(self._go_on)
            return
        self._release()
        if self._timer is None and (self._in_head or not self._is_answering()):
            # A head that is not whole yet, or line breaks between requests; most heads come in one
            # piece and need no timer.
            self._arm(HEAD_SECONDS, self._late)

    def _may_feed(self) -> bool:
        """Whether what comes next may be parsed: not while an answer waits to be made or read."""
        if self._refusal is not None:
            return False
        return self._in_request or not (self._is_answering() or self.flow.write_paused)

    def _feed(self, data: bytes, count: int) -> None:
        """Parse one piece; `count`: the bytes of it that the client sent."""
        self._progressed = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._decline()
        except httptools.HttpParserError as error:
            self._refusal = self._refusal or (
                out_of_memory()
                if isinstance(error.__context__, MemoryError)
                else unparsable("the request is not valid HTTP/1.1")
            )
        # Bytes of one head, of trailers or between requests that complete no head and bring no part
        # of a body.
        self._quiet_bytes = 0 if self._progressed else self._quiet_bytes + count
        if self._quiet_bytes > MAX_HEAD_BYTES:
            self._refusal = self._refusal or too_large(self.url)

    def _hold(self, rest: bytes) -> None:
        """Keep what was read until the answer before it is made and read."""
        self._rest = rest
        if not self.flow.paused & REST:
            self.flow.pause(REST)
            self._shared.departures.watch(self._descriptor(), self.transport.abort)

    def _release(self) -> None:
        """Keep nothing, and read on."""
        self._rest = b""
        if self.flow.paused & REST:
            self._shared.departures.forget(self._descriptor())
            self.flow.resume(REST)

    def _go_on(self) -> None:
        """Parse on where that had to wait."""
        if self._rest and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._consume(self._rest)

    def _read_on(self) -> None:
        self.flow.resume(TURN)

    def _descriptor(self) -> int:
        return cast(int, self.transport.get_extra_info("socket").fileno())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_request = self._in_head = True
        self._disarm()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:  # trailers are no headers (RFC 9110, 6.5.1)
            return
        if len(self.headers) == MAX_FIELDS:
            self._refusal = self._refusal or too_large(self.url)
            return
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._progressed = True
        self._disarm()
        if self._refusal is not None:  # too many fields
            return
        try:
            self._body_left = body_bytes(self.url, self.headers, self.parser)
        except RequestError as error:
            self._refusal = error
            return
        if not self.parser.should_upgrade():
            self._begin()
            self.scope[CLIENT_LEFT] = self._watch_client  # type: ignore[literal-required]
            if self._shared.readiness.draining:
                self.cycle.keep_alive = False

    def _begin(self) -> None:
        """Hand the request to the application, as uvicorn does."""
        version = self.parser.get_http_version()
        url = httptools.parse_url(self.url)
        scope = self.scope
        path = url.path.decode("ascii")
        scope["method"] = self.parser.get_method().decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"], scope["query_string"] = url.path, url.query or b""
        self.cycle = Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        self._start_asgi_task(self.cycle, self.app)

    def on_body(self, body: bytes) -> None:
        self._progressed = True
        if self._refusal is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._progressed = True
        self._in_request = False
        self._body_left = 0
        self._before = b""
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
        self._client_left = None
        if not self._in_request and not self._is_answering():
            # An idle connection holds nothing of its last request: half of its memory.
            self.cycle = self.scope = self.headers = None  # type: ignore[assignment]  # as at first
        if self._rest:
            self._shared.turns.wait(self._go_on)

    def _decline(self) -> None:
        """Parse a request that offers another protocol as if it did not.

        The parser takes what follows such a head for the other protocol. Java's client offers
        HTTP/2 in this way with each first request.
        """
        if self.parser.get_method() == b"CONNECT":
            self._refusal = unparsable("CONNECT is not served")
            return
        head = declined(
            self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers
        )
        self.parser = httptools.HttpRequestParser(self)
        self._feed(head, 0)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_write_timer()
        self._watch_writing(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._stop_write_timer()
        if self.transport.is_closing():
            self.flush()  # the last of it has no other end
        super().resume_writing()
        if self._rest:
            self._shared.turns.wait(self._go_on)

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
        if self._shared.lingering == LINGERING:
            self.transport.drop()  # type: ignore[attr-defined]  # a Lingering
            return
        self._lingering = True
        self._shared.lingering += 1
        self._refusal = self._refusal or unparsable("the connection is closing")
        self._release()
        self.flow.resume_reading()
        # Free the head now: the connection is in a reference cycle, so it stays until the garbage
        # collector runs.
        self.parser = None  # type: ignore[assignment]
        self.url = b""
        if not self._is_answering():
            self.cycle = self.scope = self.headers = None  # type: ignore[assignment]
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._arm(LINGER_SECONDS, self.transport.abort)

    def unfinished(self) -> bool:
        """Whether the client has still to send what it has begun."""
        return self._in_request or bool(self._rest)

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
        """Answer on the connection itself and close; an answer on its way is the last."""
        if self._lingering:
            return
        self._refusal = error
        self._release()
        if "x-request-id" not in error.headers:  # else it was refused before, and waits
            error.headers["x-request-id"] = next(self._shared.ids)
            self._shared.on_refusal(error.code)
        if self._is_answering():
            if self.cycle.response_started or not self.cycle.more_body:
                self.cycle.keep_alive = False  # an answer is on its way: it is the last
                return
            self.cycle.disconnected = True  # its body will never be whole
            self.cycle.message_event.set()
            self._leave()
        log.info("refused: %s %s", error.code, error.headers["x-request-id"])
        self.transport.write(_answer(error))
        self.linger()

    def _watch_client(self) -> asyncio.Future[None]:
        """Return what is done once the client of the request that is answered has left."""
        self._client_left = self.loop.create_future()
        if self.cycle.disconnected:
            self._leave()
        else:  # its body was read: what comes now is its end, or the next request
            self.flow.resume(BODY)
        return self._client_left

    def _leave(self) -> None:
        if self._client_left is not None and not self._client_left.done():
            self._client_left.set_result(None)

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


def protocol_class(max_connections: int, readiness: Readiness, metrics: Metrics) -> Any:
    """Return what uvicorn calls for each connection."""
    shared = Shared(
        max_connections=max_connections,
        readiness=readiness,
        on_refusal=metrics.refused,
        ids=request_ids(),
        buffers=Buffers(),
        departures=Departures(),
        turns=LoopTurns(),
    )

    def make_buffered(*arguments: Any, **options: Any) -> Buffered:
        return Buffered(Protocol(*arguments, shared=shared, **options))

    return make_buffered


def _answer(error: RequestError) -> bytes:
    content = refusals.render_error(error)
    fields = {
        **error.headers,
        "content-type": "application/json",
        "content-length": str(len(content)),
        "connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    reason = _REASONS.get(error.status, "Error")
    return f"HTTP/1.1 {error.status} {reason}\r\n{head}\r\n".encode("latin-1") + content
