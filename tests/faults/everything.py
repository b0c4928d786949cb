"""All kinds of requests, by the standard library alone: for processes that have nothing else."""

from __future__ import annotations

import http.client
import json
from typing import Any

_JSON = {"content-type": "application/json"}
_MODEL = {"model": "matryoshka"}
_TEXTS = {**_MODEL, "input": ["a b", "c"]}

# Status, method, path, headers, body.
REQUESTS: tuple[tuple[int, str, str, dict[str, str], Any], ...] = (
    (200, "POST", "/v1/embeddings", _JSON, _TEXTS),
    (200, "POST", "/openai/v1/embeddings", _JSON, {**_TEXTS, "encoding_format": "base64"}),
    (200, "POST", "/v1/embeddings", {**_JSON, "accept": "application/octet-stream"}, _TEXTS),
    (200, "POST", "/v1/embeddings", _JSON, {**_TEXTS, "dimensions": 2}),
    (200, "POST", "/v1/embeddings", _JSON, {**_TEXTS, "input_type": "query"}),
    (200, "POST", "/v1/embeddings", _JSON, {**_MODEL, "input": [[4, 5], [6]]}),
    (200, "POST", "/v1/embeddings", _JSON, {**_MODEL, "input": ["a b c d " * 20] * 2000}),
    (200, "POST", "/v1/tokenize", _JSON, _TEXTS),
    (200, "GET", "/v1/models", {}, None),
    (200, "GET", "/openai/v1/models", {}, None),
    (200, "GET", "/v1/models/matryoshka", {}, None),
    (200, "GET", "/metrics", {}, None),
    (200, "GET", "/livez", {}, None),
    (200, "GET", "/readyz", {}, None),
    (200, "GET", "/health", {}, None),
    (200, "GET", "/", {}, None),
    (200, "GET", "/docs", {}, None),
    (200, "GET", "/openapi.json", {}, None),
    (400, "POST", "/v1/embeddings", _JSON, "no object"),
    (400, "POST", "/v1/embeddings", {**_JSON, "x-request-timeout": "soon"}, _TEXTS),
    (400, "POST", "/v1/tokenize", _JSON, {}),
    (404, "POST", "/v1/embeddings", _JSON, {**_TEXTS, "model": "none"}),
    (404, "GET", "/nothing", {}, None),
    (405, "DELETE", "/v1/models", {}, None),
    (412, "POST", "/v1/embeddings", {**_JSON, "x-expect-fingerprint": "0"}, _TEXTS),
    (414, "GET", "/" + "x" * 9000, {}, None),
    (415, "POST", "/v1/embeddings", {"content-type": "text/plain"}, _TEXTS),
    (431, "GET", "/livez", {"x": "y" * 40_000}, None),
    (500, "POST", "/v1/embeddings", _JSON, {**_MODEL, "input": ["a", "fail"]}),
    (500, "POST", "/v1/embeddings", _JSON, {**_MODEL, "input": "poison"}),
)


def ask_everything(host: str, port: int) -> None:
    """Send each of REQUESTS, and one that is no HTTP; AssertionError on another status."""
    for status, method, path, headers, value in REQUESTS:
        body = None if value is None else json.dumps(value).encode()
        answer = _ask(host, port, method, path, headers, body)
        assert answer == status, f"{method} {path[:40]}: {answer}, not {status}"
    assert _ask(host, port, "NO HTTP", "/", {}, None) == 400


def _ask(
    host: str, port: int, method: str, path: str, headers: dict[str, str], body: bytes | None
) -> int:
    connection = http.client.HTTPConnection(host, port, timeout=30)
    connection._validate_method = lambda method: None  # type: ignore[attr-defined]  # sent as it is
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status
