"""What an attacker sends on one connection, as values: a form, its steps, and how it leaves."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Leaves = Literal["stays", "closes", "resets", "half-closes"]
LEAVES: tuple[Leaves, ...] = get_args(Leaves)

WITHOUT_END = 0
KEY = "attackers-have-one"  # of a server that asks for keys: for forms that get past the door


@dataclass(frozen=True, slots=True)
class Step:
    """`data`, sent `times` times with a pause of so many seconds after each."""

    data: bytes
    times: int = 1  # WITHOUT_END: until the connection ends
    pause: float = 0.0


@dataclass(frozen=True, slots=True)
class Form:
    """What each connection does; when it has ended, it is opened again."""

    steps: tuple[Step, ...]
    reads: bool = True
    leaves: Leaves = "closes"

    def dumped(self) -> str:
        """The form as JSON, for the attackers' process."""
        fields = asdict(self)
        for step in fields["steps"]:
            step["data"] = step["data"].decode("latin-1")
        return json.dumps(fields)


def loaded(text: str) -> Form:
    """The form of a JSON text."""
    fields: dict[str, Any] = json.loads(text)
    steps = tuple(
        Step(one["data"].encode("latin-1"), one["times"], one["pause"]) for one in fields["steps"]
    )
    return Form(steps, fields["reads"], fields["leaves"])


def endless(*steps: bytes, reads: bool = True, pause: float = 0.0) -> Form:
    """The first pieces once, the last one without end."""
    *first, last = steps
    return Form((*(Step(data) for data in first), Step(last, WITHOUT_END, pause)), reads)


def once(data: bytes, leaves: Leaves, pause: float = 0.0, *, reads: bool = True) -> Form:
    """One piece, and gone."""
    return Form((Step(data, 1, pause),), reads, leaves)


def post(body: bytes, more: bytes = b"", path: bytes = b"/v1/embeddings") -> bytes:
    """POST with a key and a Content-Length."""
    return b"%bContent-Length: %d\r\n\r\n%b" % (_head(path) + more, len(body), body)


def _head(path: bytes = b"/v1/embeddings") -> bytes:
    return (
        b"POST %b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n"
        b"Content-Type: application/json\r\n" % (path, KEY.encode())
    )


LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
START = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
CHUNKED = _head() + b"Transfer-Encoding: chunked\r\n\r\n"
SIZED = _head() + b"Content-Length: 30000000\r\n\r\n"
QUERY = b'{"input":"a query"}'
BULK = b'{"input":[%b]}' % b",".join(b'"text %d of a bulk request"' % i for i in range(500))
WIDE = b"".join(b"field-%d: %b\r\n" % (i, b"v" * 310) for i in range(95))  # a head at its limits
UPGRADE = START + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
PREFLIGHT = b"OPTIONS /v1/embeddings HTTP/1.1\r\nHost: x\r\nOrigin: http://a.example\r\n\r\n"

FORMS: dict[str, Form] = {
    # Requests behind requests.
    "livez pipelined, read": endless(LIVEZ),
    "livez pipelined, unread": endless(LIVEZ, reads=False),
    "livez 26 MB, then silent": Form((Step(LIVEZ * 800, 850),), leaves="stays"),
    "livez 26 MB, gone": Form((Step(LIVEZ * 800, 850),), leaves="resets"),
    "unknown URLs pipelined, unread": endless(LIVEZ.replace(b"livez", b"nothing"), reads=False),
    "pages pipelined, unread": endless(LIVEZ.replace(b"livez", b"openapi.json"), reads=False),
    "401 and more": endless(post(QUERY).replace(KEY.encode(), b"x"), reads=False),
    "queries pipelined, read": endless(post(QUERY)),
    "queries pipelined, unread": endless(post(QUERY), reads=False),
    "bulk pipelined, read": endless(post(BULK)),
    "bulk pipelined, unread": endless(post(BULK), reads=False),
    "offers of another protocol": endless(UPGRADE),
    "wide heads pipelined": endless(START + WIDE + b"\r\n", reads=False),
    "refused, and more": endless(b"GET / HTTP/1.1\r\n\r\n", LIVEZ * 100),
    # Heads without end.
    "short fields": endless(START, b"abcd:ef\r\n"),
    "shortest fields": endless(START, b"a:\r\n"),
    "one endless name": endless(START, b"a" * 1000),
    "one endless value": endless(START + b"a: ", b"v" * 1000),
    "one endless URL": endless(b"GET /", b"a" * 1000),
    "one endless method": endless(b"GET" * 1000),
    "a byte at a time": endless(START + b"a: ", b"v", pause=0.005),
    "a field at a time": endless(START, b"abcd:ef\r\n", pause=0.02),
    "wide heads, unfinished": Form((Step(START + WIDE),), leaves="stays"),
    "empty lines": endless(b"\r\n"),
    "empty lines between requests": endless(LIVEZ + b"\r\n" * 8000),
    "no HTTP": endless(b"\x16\x03\x01" + b"\xff" * 997),
    # Bodies.
    "sized, never read": endless(START + b"Content-Length: 100000000000\r\n\r\n", b"x" * 1000),
    "sized, stalled": Form((Step(SIZED), Step(b"x" * 50_000)), leaves="stays"),
    "sized, a byte at a time": endless(SIZED, b"x", pause=0.005),
    "chunks of one byte": endless(CHUNKED, b"1\r\nx\r\n"),
    "chunks of line ends": endless(CHUNKED, b"3e8\r\n" + b"\r\n" * 500 + b"\r\n"),
    "chunk extensions": endless(CHUNKED, b"1;" + b"e" * 1000 + b"\r\nx\r\n"),
    "one endless extension": endless(CHUNKED + b"1;", b"e" * 1000),
    "one endless chunk size": endless(CHUNKED, b"0" * 1000),
    "trailers": endless(CHUNKED + b"0\r\n", b"abcd:ef\r\n"),
    "one endless trailer": endless(CHUNKED + b"0\r\na: ", b"v" * 1000),
    # Departures.
    "connects": once(b"", "closes"),
    "connects, and resets": once(b"", "resets"),
    "half a head": once(START, "resets", 0.01),
    "half a body": once(SIZED + b"x" * 9_000, "resets", 0.01),
    "leaves behind bulk": once(post(BULK) + post(QUERY) * 20, "closes", 0.05),
    "resets behind bulk": once(post(BULK) + LIVEZ * 1000, "resets", 0.05),
    "half-closes behind bulk": once(post(BULK) + LIVEZ * 1000, "half-closes", 0.05),
    "half-closes, unread": once(post(BULK) * 3, "half-closes", 0.05, reads=False),
}
