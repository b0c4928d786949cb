"""Until when a client waits: the deadline that it asks for."""

from __future__ import annotations

import math

from embedserve.errors import RequestError
from embedserve.http.body import Headers

# The OpenAI clients send the second with every request: their own read timeout.
DEADLINE_HEADERS = (b"x-request-timeout", b"x-stainless-read-timeout")


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
