"""Reads a body within its limits, counted as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.types import Receive, Scope

from embedserve.config.settings import Settings
from embedserve.errors import ClientLeftError, RequestError
from embedserve.http.json_structure import FIELDS, MOST_OBJECTS, VALUE_BYTES, Structure
from embedserve.http.memory_budget import BODY_COPIES, PROGRESS_BYTES, PROGRESS_SECONDS, Reservation

Headers = Mapping[bytes, bytes]

JSON = "application/json"
_JSON = JSON.encode()
# When a request's headers are refused, the rest of its body is not read.
_CLOSE = {"Connection": "close"}
_LATE = "the body is late"
_STALLED = "the body is stalled"
# A smaller body is parsed without counting its values first. At worst that takes a millisecond and,
# for that time, 40 times its bytes.
SMALL = 16_384


def headers(scope: Scope) -> Headers:
    """Return the request's headers by lower-case name; of a repeated one the last counts."""
    return dict(scope["headers"])


async def read(
    receive: Receive,
    found: Headers,
    settings: Settings,
    reservation: Reservation,
    takes_ids: bool = True,
) -> bytes | bytearray:
    """Return the whole body of a JSON request: 400, 408, 413, 415 or 429 past the limits.

    `reservation` holds what came, what parsing it takes, and what is parsed. `takes_ids`: the body
    may hold as many integers as a request may have tokens; else hardly more values than texts.

    ClientLeftError when the client closes its connection before the end.
    """
    _check_headers(found, settings.max_body_bytes)
    # asyncio.timeout does the same at three times the cost, on every request.
    task = asyncio.current_task()
    assert task is not None
    timer = asyncio.get_running_loop().call_later(settings.max_body_seconds, task.cancel, _LATE)
    try:
        first, more = await _piece(receive)
        if more or len(first) > SMALL:
            arrival = reservation.arrives(lambda: task.cancel(_STALLED))
            incoming = _Incoming(settings, reservation, takes_ids)
            incoming.add(first)
            while more:
                piece, more = await _piece(receive)
                arrival.brings(len(piece))
                incoming.add(piece)
            return incoming.body
        if len(first) > settings.max_body_bytes:
            raise _too_large(settings.max_body_bytes)
        reservation.add((BODY_COPIES + 1) * len(first))
        return first
    except asyncio.CancelledError as cancelled:
        if cancelled.args not in ((_LATE,), (_STALLED,)):
            raise
        task.uncancel()
        raise _late(settings, is_stalled=cancelled.args == (_STALLED,)) from None
    finally:
        timer.cancel()
        reservation.has_arrived()


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


def most_values(settings: Settings, *, takes_ids: bool) -> int:
    """How many values and separators a body may have: two a text, one an id, and FIELDS."""
    ids = settings.max_request_tokens + settings.max_inputs if takes_ids else 0
    return 2 * settings.max_inputs + ids + FIELDS


async def _piece(receive: Receive) -> tuple[bytes, bool]:
    """Return the next piece of the body, and whether more will come."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientLeftError
    return message.get("body", b""), message.get("more_body", False)


class _Incoming:
    """A body of several pieces, or a large one: held to its limits with each piece."""

    def __init__(self, settings: Settings, reservation: Reservation, takes_ids: bool) -> None:
        self.body = bytearray()
        self._structure = Structure()
        self._settings = settings
        self._reservation = reservation
        self._most_values = most_values(settings, takes_ids=takes_ids)

    def add(self, piece: bytes) -> None:
        """Take the next piece; RequestError past a limit."""
        size = len(self.body) + len(piece)
        if size > self._settings.max_body_bytes:
            raise _too_large(self._settings.max_body_bytes)
        structure = self._structure
        for start in range(0, len(piece), SMALL):
            structure.feed(piece[start : start + SMALL])
            if size > SMALL:
                self._check(structure)
        copies = BODY_COPIES + structure.width
        self._reservation.hold(copies * size + VALUE_BYTES * structure.values)
        self.body += piece

    def _check(self, structure: Structure) -> None:
        if structure.objects > MOST_OBJECTS:
            raise RequestError(
                "invalid_type",
                f"the body has more than {MOST_OBJECTS} objects; one is accepted, and input is a "
                "string or an array of strings",
                "input",
                _CLOSE,
            )
        if structure.values > self._most_values:
            raise RequestError(
                "too_many_inputs",
                f"the body has more than {self._most_values} values and separators; at most "
                f"{self._settings.max_inputs} texts are accepted in one request",
                "input",
                _CLOSE,
            )


def _late(settings: Settings, *, is_stalled: bool) -> RequestError:
    message = (
        f"fewer than {PROGRESS_BYTES} bytes of the body arrived in {PROGRESS_SECONDS:g} s while "
        "another request needed the memory"
        if is_stalled
        else f"the body did not arrive within {settings.max_body_seconds:g} s"
    )
    return RequestError("request_timeout", message, headers=_CLOSE)


def _shown(value: bytes) -> str:
    return repr(value[:64].decode("latin-1"))


def _too_large(limit: int) -> RequestError:
    return RequestError(
        "request_too_large", f"the body has more than {limit} bytes", headers=_CLOSE
    )
