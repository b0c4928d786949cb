"""The pages and the OpenAPI document: package data -> responses with their security headers."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, cast

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from embedserve import __version__

OPENAPI = "openapi.json"
# A style or a script of the source, each a file of its own: the page that is sent has them inside.
_LINKED = re.compile(r'<link rel="stylesheet" href="(\S+)">|<script src="(\S+)"></script>')
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)
_TAG = re.compile(r'"[^"]*"')
_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept, and asked for by ETag each time
}


@dataclass(frozen=True, slots=True)
class Page:
    """One document in memory, with all its headers. Called by the router for GET and HEAD."""

    content: bytes
    media_type: str
    headers: Mapping[str, str]

    async def answer(self, request: Request) -> Response:
        """200 with the document, or 304 for a client that has it."""
        if _has(request.headers.get("if-none-match", ""), self.headers["ETag"]):
            return Response(status_code=304, headers=self.headers)
        return Response(self.content, headers=self.headers, media_type=self.media_type)


def routes(max_inputs: int) -> list[Route]:
    """Return the routes of `GET /`, `/docs` and `/openapi.json`; package data is read here, once.

    `max_inputs` is the setting of that name: the description says it.
    """
    pages = {
        "/": html(whole("playground.html")),
        "/docs": html(whole("docs.html")),
        "/openapi.json": page(orjson.dumps(openapi(max_inputs)), "application/json", ""),
    }
    return [Route(path, made.answer) for path, made in pages.items()]


def whole(name: str) -> str:
    """Return a page of the package with its style and its script inside."""

    def inside(found: re.Match[str]) -> str:
        style, script = found.groups()
        if style is not None:
            return f"<style>\n{_read(style)}</style>"
        return f"<script>\n{_read(script)}</script>"

    return _LINKED.sub(inside, _read(name))


def openapi(max_inputs: int) -> dict[str, Any]:
    """Return the OpenAPI document with what is known at start: the version, and `max_inputs`."""
    document = cast("dict[str, Any]", orjson.loads(_read(OPENAPI)))
    document["info"]["version"] = __version__
    document["components"]["schemas"]["Texts"]["maxItems"] = max_inputs
    return document


def html(text: str) -> Page:
    """Make a page that allows only the scripts and styles inlined in `text`."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, inline in _INLINE.findall(text):
        hashes[kind].append(csp_hash(inline))
    sources = "; ".join(f"{kind}-src {' '.join(found)}" for kind, found in hashes.items())
    return page(text.encode(), "text/html", f"{sources}; img-src data:; connect-src 'self'; ")


def page(content: bytes, media_type: str, sources: str) -> Page:
    """Make a page that may load `sources`, directives of a Content-Security-Policy, and no more."""
    policy = (
        f"default-src 'none'; {sources}base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_SECURITY, "Content-Security-Policy": policy, "ETag": etag}
    return Page(content, media_type, headers)


def csp_hash(inline: str) -> str:
    """Return the source expression that allows one inline script or style.

    Source: Content Security Policy Level 3, 2.3.1 (hash-source).

    >>> csp_hash("alert(1)")
    "'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='"
    """
    digest = hashlib.sha256(inline.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _has(if_none_match: str, etag: str) -> bool:
    """Weak comparison, as RFC 9110 (13.1.2) asks for If-None-Match."""
    return if_none_match.strip() == "*" or etag in _TAG.findall(if_none_match)


def _read(name: str) -> str:
    return resources.files("embedserve").joinpath("page", name).read_text(encoding="utf-8")
