"""Answers that may be large: their parts are sent, and let go, as the client takes them."""

from __future__ import annotations

from starlette.types import Send

HELD_BYTES = 65_536  # what the transport takes without holding anybody up

RawHeaders = list[tuple[bytes, bytes]]
Parts = list[bytes] | list[memoryview]


async def send(transmit: Send, headers: RawHeaders, parts: Parts) -> None:
    """Send status 200 with `headers` and the parts of a body; returns when it is nearly taken.

    `parts` is empty afterwards.
    """
    size = sum(map(len, parts))
    headers.append((b"content-length", b"%d" % size))
    await transmit({"type": "http.response.start", "status": 200, "headers": headers})
    last: bytes | memoryview = b""
    if size <= HELD_BYTES:
        last = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
    parts.reverse()
    while parts:
        # What a client does not take is held: the next call waits until it is nearly gone.
        await transmit({"type": "http.response.body", "body": parts.pop(), "more_body": True})
    await transmit({"type": "http.response.body", "body": last})
