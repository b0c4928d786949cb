"""Vectors, tokens and small answers -> bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pybase64

from embedserve.api.parse import EncodingFormat
from embedserve.arrays.types import Floats
from embedserve.system import memory

if TYPE_CHECKING:  # the front of a cluster renders, and has no tokenizer
    from embedserve.model.tokenizer import Tokens

_DIGITS = 13  # bytes of a component as JSON, at most
_TOKEN = 256  # bytes of a token, its id and text as JSON, with what orjson takes to grow
# Components that are rendered in one step: below a millisecond, 100 KB.
STEP_COMPONENTS = 8_192
OCTET_STREAM = b"application/octet-stream"


def embeddings_parts(
    model: str,
    rows: Floats,
    tokens: int,
    truncated: Sequence[int],
    encoding_format: EncodingFormat,
) -> Iterator[bytes]:
    """Render rows (n, dim) as the answer's JSON, in parts of below a millisecond.

    Floats are the shortest decimals that give back the same float32; base64 is of little-endian
    float32.
    """
    usage: dict[str, Any] = {"prompt_tokens": tokens, "total_tokens": tokens}
    if truncated:
        usage["truncated"] = list(truncated)
    tail: dict[str, Any] = {"model": model, "usage": usage}
    rows = np.ascontiguousarray(rows, "<f4")
    n, dims = rows.shape
    end = b"]," + orjson.dumps(tail)[1:]
    render = _base64_objects if encoding_format == "base64" else _float_objects
    step = max(1, STEP_COMPONENTS // dims)
    for first in range(0, n, step):
        part = render(rows[first : first + step], first)
        part[0] = b",{" if first else b'{"object":"list","data":[{'
        if first + step >= n:
            part.append(end)
        yield b"".join(part)


def _float_objects(rows: Floats, first: int) -> list[bytes]:
    """The objects of rows, in pieces; the first piece is the brace that opens the first object."""
    opening = b'"object":"embedding","index":%%d,"dims":%d,"embedding":' % rows.shape[1]
    pieces: list[bytes] = []
    for i, row in enumerate(rows, first):
        pieces += (
            b",{",
            opening % i,
            orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY),
            b"}",
        )
    return pieces


def _base64_objects(rows: Floats, first: int) -> list[bytes]:
    """As `_float_objects`, with base64 of each row."""
    opening = b'"object":"embedding","index":%%d,"dims":%d,"embedding":"' % rows.shape[1]
    pieces: list[bytes] = []
    for i, row in enumerate(rows, first):
        pieces += (b",{", opening % i, pybase64.b64encode(row), b'"}')
    return pieces


def render_octets(rows: Floats) -> memoryview:
    """Return the matrix as raw little-endian float32, row after row, without a copy."""
    return np.ascontiguousarray(rows, "<f4").data.cast("B")


def render_tokens(tokens: Sequence[Tokens], first: int) -> bytes:
    """Render what a model sees of each text, as a part of an answer.

    `first` is the first text's index in its request.
    """
    memory.check(_TOKEN * sum(len(text.ids) for text in tokens))
    objects = [
        {
            "object": "tokens",
            "index": i,
            "token_ids": text.ids,
            "tokens": text.tokens,
            "count": len(text.ids),
            "total": text.total,
            "truncated": text.total > len(text.ids),
        }
        for i, text in enumerate(tokens, first)
    ]
    return orjson.dumps(objects)[1:-1]


def tokens_answer(model: str, parts: Iterable[bytes]) -> list[bytes]:
    """The answer of POST tokenize around the parts of `render_tokens`."""
    answer = [part for each in parts for part in (b",", each)]
    answer[:1] = [b'{"object":"list","data":[']
    return [*answer, b"]," + orjson.dumps({"model": model})[1:]]


def render(value: Mapping[str, Any]) -> bytes:
    """Render a small answer as JSON."""
    return orjson.dumps(value)
