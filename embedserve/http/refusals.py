"""A refused request -> the answer that says so: OpenAI's error body."""

from __future__ import annotations

import orjson
from starlette.responses import Response

from embedserve.errors import RequestError


def render_error(error: RequestError) -> bytes:
    """Render OpenAI's error body."""
    body = {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    return orjson.dumps({"error": body})


def error_response(error: RequestError) -> Response:
    """OpenAI's error body, with the error's status and headers."""
    return Response(
        render_error(error),
        status_code=error.status,
        headers=error.headers,
        media_type="application/json",
    )


def out_of_memory() -> RequestError:
    """503 for a request that found no memory."""
    message = "there is not enough memory for this request now; try again later"
    return RequestError("out_of_memory", message, None, {"Retry-After": "5"})
