"""What a connection answered, read strictly: known statuses, sound framing, errors as JSON."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from embedserve.errors import ERRORS

# No client causes an internal error; what it does not accept itself is in ERRORS.
STATUSES = {100, 200, 304} | {kind.status for kind in ERRORS.values()} - {500}
WITHOUT_BODY = {100, 304}
START = b"HTTP/1.1 "
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Za-z' -]+")
_FIELD = re.compile(rb"([A-Za-z0-9-]+): ([\t\x20-\x7e\x80-\xff]*)")
_SIZE = re.compile(rb"[0-9a-fA-F]{1,8}")
_WHAT_WAS_FOUND = re.compile(r"'[^']*'|\"[^\"]*\"|[^A-Za-z ]+")
_MOST = 60


class MalformedError(Exception):
    """An answer that this server must not give."""


class Answer(NamedTuple):
    """One answer. `kind`: of an error its code and message, without what was found."""

    status: int
    kind: str


def answers(data: bytes, *, has_head: bool) -> tuple[list[Answer], bytes]:
    """Return the whole answers in `data` and what follows them; MalformedError.

    `has_head`: one of the requests may be HEAD, whose answer ends after its fields.
    """
    found: list[Answer] = []
    while True:
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end:
            if not (START.startswith(head[: len(START)]) or head.startswith(START)):
                raise MalformedError(f"no status line: {head[:200]!r}")
            return found, data
        status, fields = _head(head)
        if status in WITHOUT_BODY:
            found.append(Answer(status, ""))
            data = rest
        elif has_head and (not rest or rest.startswith(START)):
            found.append(Answer(status, "HEAD"))
            data = rest
        else:
            split = _body(fields, rest)
            if split is None:
                return found, data
            found.append(Answer(status, _kind(status, fields, split[0])))
            data = split[1]


def _head(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    line, *lines = head.split(b"\r\n")
    status = _STATUS.fullmatch(line)
    if not status or int(status[1]) not in STATUSES:
        raise MalformedError(f"status line {line[:200]!r}")
    fields: dict[bytes, bytes] = {}
    for one in lines:
        field = _FIELD.fullmatch(one)
        if not field:
            raise MalformedError(f"field {one[:200]!r}")
        name = field[1].lower()
        if name in fields and name in (b"content-length", b"transfer-encoding", b"x-request-id"):
            raise MalformedError(f"two fields {one[:200]!r}")
        fields[name] = field[2]
    return int(status[1]), fields


def _body(fields: dict[bytes, bytes], rest: bytes) -> tuple[bytes, bytes] | None:
    """The body and what follows it; None: it is not whole."""
    length, coding = fields.get(b"content-length"), fields.get(b"transfer-encoding")
    if (length is None) == (coding is None) or coding not in (None, b"chunked"):
        raise MalformedError(f"Content-Length {length!r}, Transfer-Encoding {coding!r}")
    if length is not None:
        if not length.isdigit():
            raise MalformedError(f"Content-Length {length!r}")
        size = int(length)
        return (rest[:size], rest[size:]) if len(rest) >= size else None
    pieces = []
    while True:
        line, end, after = rest.partition(b"\r\n")
        if not end:
            return None
        if not _SIZE.fullmatch(line):
            raise MalformedError(f"chunk size {line[:200]!r}")
        size = int(line, 16)
        if len(after) < size + 2:
            return None
        if after[size : size + 2] != b"\r\n":
            raise MalformedError(f"a chunk of {size} bytes ends in {after[size : size + 2]!r}")
        pieces.append(after[:size])
        rest = after[size + 2 :]
        if size == 0:
            return b"".join(pieces), rest


def _kind(status: int, fields: dict[bytes, bytes], body: bytes) -> str:
    """Check an error's body; its code and message."""
    if status == 200 or (status == 503 and b'"error"' not in body):  # readiness with reasons
        return ""
    try:
        error = json.loads(body)["error"]
        code, message = error["code"], error["message"]
        is_known = set(error) == {"message", "type", "param", "code"}
        is_known &= (status, error["type"]) == ERRORS[code][:2]
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedError(f"{status} with {body[:200]!r}: {error!r}") from error
    if not is_known or fields.get(b"content-type") != b"application/json":
        raise MalformedError(f"{status} with {fields} and {body[:200]!r}")
    return f"{code} {_WHAT_WAS_FOUND.sub('', message)[:_MOST]}"
