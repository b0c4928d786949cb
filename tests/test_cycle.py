"""The answer on the wire: its head, and what an application must not send."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve.http.cycle import Cycle, rendered
from embedserve.http.flow_control import Flow

pytestmark = pytest.mark.anyio

NAMES = st.sampled_from([b"x-request-id", b"retry-after", b"server"])
VALUES = st.binary(max_size=20)
BREAKS = (b"\r", b"\n", b"\0")


class Transport:
    """Keeps what is written, each call by itself."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.closed = True


def cycle(transport: Any, *, method: str = "POST", keep_alive: bool = True) -> Cycle:
    """One request's, with the Date header that uvicorn puts first."""
    return Cycle(
        scope={"type": "http", "method": method},  # type: ignore[typeddict-item]  # no more is read
        transport=transport,
        flow=Flow(transport),
        logger=None,  # type: ignore[arg-type]  # only run_asgi uses it
        access_logger=None,  # type: ignore[arg-type]  # as above
        access_log=False,
        default_headers=[(b"date", b"today")],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=lambda: None,
    )


def start(length: int | None = 4, *more: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    sized = [] if length is None else [(b"content-length", b"%d" % length)]
    return {"type": "http.response.start", "status": status, "headers": [*sized, *more]}


def body(data: bytes = b"body", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


@given(headers=st.lists(st.tuples(NAMES, VALUES), max_size=5), closes=st.booleans())
def test_no_header_ends_a_line(headers: list[tuple[bytes, bytes]], closes: bool) -> None:
    """Whatever a value holds: a head of so many lines, or none."""
    if any(sign in value for _, value in headers for sign in BREAKS):
        with pytest.raises(RuntimeError, match="line break"):
            rendered(200, headers, closes=closes)
        return
    lines = rendered(200, headers, closes=closes).split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 200 OK"
    assert lines[1:-2] == [b"%b: %b" % each for each in headers] + [b"connection: close"] * closes
    assert lines[-2:] == [b"", b""]


async def test_head_and_body_are_one_write() -> None:
    """In one piece; the next parts follow by themselves."""
    transport = Transport()
    one = cycle(transport)
    await one.send(start(8))
    assert not transport.written
    await one.send(body(b"abcd", more=True))
    await one.send(body(b"efgh"))
    head = b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 8\r\n\r\n"
    assert transport.written == [head + b"abcd", b"efgh"]
    assert one.response_complete
    assert not transport.closed


@pytest.mark.parametrize("said", [True, False], ids=["by the headers", "by the request"])
async def test_the_last_answer_says_so(said: bool) -> None:
    """Once, and the connection is closed."""
    transport = Transport()
    one = cycle(transport, keep_alive=said)
    await one.send(start(4, *([(b"connection", b"Close")] if said else [])))
    await one.send(body())
    assert transport.written[0].lower().count(b"connection: close\r\n") == 1
    assert transport.closed


async def test_head_requests_get_no_body() -> None:
    """But its length."""
    transport = Transport()
    one = cycle(transport, method="HEAD")
    await one.send(start(4))
    await one.send(body())
    assert transport.written[0].endswith(b"content-length: 4\r\n\r\n")


async def test_no_content_has_no_length() -> None:
    transport = Transport()
    one = cycle(transport)
    await one.send(start(None, status=204))
    await one.send(body(b""))
    assert one.response_complete


@pytest.mark.parametrize(
    "messages",
    [
        [body()],
        [start(), start()],
        [start(None)],
        [start(3), body()],
        [start(5), body()],
        [start(8), body(more=True), body(), body(b"")],
        [start(4), body(), body(b"")],
        [start(4, (b"x", b"a\r\nset-cookie: b"))],
    ],
)
async def test_what_is_no_answer(messages: list[dict[str, Any]]) -> None:
    """An application's mistake is an error of its own, and nothing false on the wire."""
    transport = Transport()
    one = cycle(transport)
    with pytest.raises(RuntimeError):
        for message in messages:
            await one.send(message)
    written = b"".join(transport.written)
    assert b"set-cookie" not in written
    assert written.count(b"HTTP/1.1") <= 1
