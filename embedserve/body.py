"""Reads what a client sends: the body within its limits, the deadline it asks for."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping

from starlette.types import Receive, Scope

from embedserve.errors import ClientLeftError, RequestError
from embedserve.pending import BODY_COPIES, Share
from embedserve.settings import Settings

Headers = Mapping[bytes, bytes]

JSON = "application/json"
_JSON = JSON.encode()
# The OpenAI clients send the second with every request: their own read timeout.
DEADLINE_HEADERS = (b"x-request-timeout", b"x-stainless-read-timeout")
# What is left of a body that was refused by its headers is not read.
_CLOSE = {"Connection": "close"}
_LATE = "the body is late"


def headers(scope: Scope) -> Headers:
    """Return the request's headers by lower-case name; of a repeated one the last counts."""
    return dict(scope["headers"])


async def read(receive: Receive, found: Headers, settings: Settings, share: Share) -> bytes:
    """Return the whole body of a JSON request: 408, 413, 415 or 429 past the limits.

    What arrives is added to the request's `share`.

    ClientLeftError when the client closes its connection before the end.
    """
    _check_headers(found, settings.max_body_bytes)
    # asyncio.timeout does the same at three times the cost, on every request.
    task = asyncio.current_task()
    assert task is not None
    timer = asyncio.get_running_loop().call_later(settings.max_body_seconds, task.cancel, _LATE)
    try:
        return await _chunks(receive, settings.max_body_bytes, share)
    except asyncio.CancelledError as cancelled:
        if cancelled.args != (_LATE,):
            raise
        task.uncancel()
        seconds = settings.max_body_seconds
        raise RequestError(
            "request_timeout", f"the body did not arrive within {seconds:g} s", headers=_CLOSE
        ) from None
    finally:
        timer.cancel()


def deadline(found: Headers, most: float) -> float:
    """Return the seconds a request may take: what it asks for, bounded by the server's `most`."""
    for header in DEADLINE_HEADERS:
        value = found.get(header)
        if value is None:
            continue
        seconds = _seconds(value)
        if seconds > 0:
            return min(seconds, most)
        if header == DEADLINE_HEADERS[0]:
            text = value[:32].decode("latin-1")
            message = f"X-Request-Timeout is {text!r}; a number of seconds above 0"
            raise RequestError("invalid_value", message, header.decode("ascii"))
    return most


def _seconds(value: bytes) -> float:
    try:
        seconds = float(value)
    except ValueError:
        return 0.0
    return 0.0 if math.isnan(seconds) else seconds


def _check_headers(found: Headers, limit: int) -> None:
    encoding = found.get(b"content-encoding", b"identity").strip().lower()
    if encoding != b"identity":
        raise RequestError(
            "unsupported_encoding",
            f"Content-Encoding is {_shown(encoding)}; send the body uncompressed",
            headers=_CLOSE,
        )
    media_type = found.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media_type != _JSON:
        what = f"is {_shown(media_type)}" if media_type else "is missing"
        raise RequestError(
            "unsupported_media_type", f"Content-Type {what}; {JSON} is accepted", headers=_CLOSE
        )
    length = found.get(b"content-length", b"0")
    if length.isdigit() and int(length) > limit:
        raise _too_large(limit)


async def _chunks(receive: Receive, limit: int, share: Share) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        share.add(BODY_COPIES * len(chunk))
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _shown(value: bytes) -> str:
    return repr(value[:64].decode("latin-1"))


def _too_large(limit: int) -> RequestError:
    return RequestError(
        "request_too_large", f"the body has more than {limit} bytes", headers=_CLOSE
    )
