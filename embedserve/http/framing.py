"""Finds where a request ends in a stream of bytes, and decides which heads are accepted."""

from __future__ import annotations

from collections.abc import Sequence

import httptools

from embedserve.errors import RequestError

MAX_HEAD_BYTES = 32_768  # request line and header fields together
MAX_URL_BYTES = 8_192
MAX_FIELDS = 100
CHUNKED = -1  # in place of a length: the body is chunked, so its length is not known in advance

_END = b"\r\n\r\n"


def find_end(data: bytes, start: int, before: bytes) -> int:
    """Return where the next empty line ends in `data`; its length where there is none.

    `before`: the last three bytes before `data`, in case an empty line is split across two pieces.
    Heads and chunked bodies end only at an empty line, so a piece up to here has at most one end.
    """
    if start == 0 and before:
        found = (before + data[:3]).find(_END)
        if found >= 0:
            return found + len(_END) - len(before)
    found = data.find(_END, start)
    return len(data) if found < 0 else found + len(_END)


def body_bytes(
    url: bytes, headers: Sequence[tuple[bytes, bytes]], parser: httptools.HttpRequestParser
) -> int:
    """Return how many bytes follow a head, or CHUNKED; RequestError for a head not accepted.

    The parser has refused a Content-Length that is no number or not the only one, one beside
    Transfer-Encoding, and bare line feeds.
    """
    size, hosts, length = len(url), 0, 0
    for name, value in headers:
        size += len(name) + len(value)
        if name == b"host":
            hosts += 1
        elif name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            _check_coding(value, parser)
            length = CHUNKED
    if len(url) > MAX_URL_BYTES or len(headers) > MAX_FIELDS or size > MAX_HEAD_BYTES:
        raise too_large(url)
    if hosts > 1 or (hosts == 0 and parser.get_http_version() != "1.0"):
        raise unparsable(f"the request has {hosts} Host fields; exactly one is accepted")
    return length


def _check_coding(value: bytes, parser: httptools.HttpRequestParser) -> None:
    if value.strip().lower() != b"chunked":
        text = value[:64].decode("latin-1")
        raise RequestError(
            "unsupported_transfer_coding", f"Transfer-Encoding is {text!r}; chunked is accepted"
        )
    if parser.get_http_version() == "1.0":  # RFC 9112, 6.1: its framing is faulty
        raise unparsable("an HTTP/1.0 request has Transfer-Encoding; Content-Length is accepted")


def declined(
    method: bytes, url: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]
) -> bytes:
    """Return the head of a request without its offer of another protocol."""
    lines = [b"%b %b HTTP/%b" % (method, url, version.encode("ascii"))]
    for name, value in headers:
        if name == b"upgrade":
            continue
        if name == b"connection":
            options = [option.strip() for option in value.split(b",")]
            value = b", ".join(o for o in options if o.lower() != b"upgrade")
        lines.append(b"%b: %b" % (name, value))
    return b"\r\n".join(lines) + _END


def too_large(url: bytes) -> RequestError:
    """The error for a head past its limits (414, 431)."""
    if len(url) > MAX_URL_BYTES:
        return RequestError("uri_too_long", f"the URL has more than {MAX_URL_BYTES} bytes")
    return RequestError(
        "headers_too_large",
        f"the header has more than {MAX_HEAD_BYTES} bytes or {MAX_FIELDS} fields",
    )


def unparsable(message: str) -> RequestError:
    """The error for what is not HTTP/1.1 as served here (400)."""
    return RequestError("invalid_http", message)
