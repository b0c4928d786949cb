"""Reads what a client sends: the body within its limits, the deadline it asks for."""

from __future__ import annotations

import asyncio
import math

from starlette.requests import Request

from embedserve.errors import RequestError
from embedserve.settings import Settings

JSON = "application/json"
# The OpenAI clients send the second with every request: their own read timeout.
DEADLINE_HEADERS = ("x-request-timeout", "x-stainless-read-timeout")
# What is left of a body that was refused by its headers is not read.
_CLOSE = {"Connection": "close"}


async def read(request: Request, settings: Settings) -> bytes:
    """Return the whole body of a JSON request: 408, 413 or 415 past the limits."""
    _check_headers(request, settings.max_body_bytes)
    try:
        async with asyncio.timeout(settings.max_body_seconds):
            return await _chunks(request, settings.max_body_bytes)
    except TimeoutError:
        seconds = settings.max_body_seconds
        raise RequestError(
            "request_timeout", f"the body did not arrive within {seconds:g} s", headers=_CLOSE
        ) from None


def deadline(request: Request, most: float) -> float:
    """Return the seconds a request may take: what it asks for, bounded by the server's `most`."""
    for header in DEADLINE_HEADERS:
        text = request.headers.get(header)
        if text is None:
            continue
        seconds = _seconds(text)
        if seconds > 0:
            return min(seconds, most)
        if header == DEADLINE_HEADERS[0]:
            message = f"X-Request-Timeout is {text[:32]!r}; a number of seconds above 0"
            raise RequestError("invalid_value", message, header)
    return most


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return 0.0 if math.isnan(seconds) else seconds


def _check_headers(request: Request, limit: int) -> None:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise RequestError(
            "unsupported_encoding",
            f"Content-Encoding is {encoding[:64]!r}; send the body uncompressed",
            headers=_CLOSE,
        )
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != JSON:
        found = f"is {media_type[:64]!r}" if media_type else "is missing"
        raise RequestError(
            "unsupported_media_type", f"Content-Type {found}; {JSON} is accepted", headers=_CLOSE
        )
    length = request.headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length) > limit:
        raise _too_large(limit)


async def _chunks(request: Request, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(limit: int) -> RequestError:
    return RequestError(
        "request_too_large", f"the body has more than {limit} bytes", headers=_CLOSE
    )
