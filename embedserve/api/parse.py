"""A request body -> what is asked: a well-formed request, or a refusal that names the field."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from embedserve.errors import RequestError
from embedserve.model.request import EmbeddingsRequest
from embedserve.system import memory

_PARSED = 6  # bytes that parsing takes for each of a body


Body = bytes | bytearray
EncodingFormat = Literal["float", "base64"]


@dataclass(frozen=True, slots=True)
class WireRequest(EmbeddingsRequest):
    """What is asked, and the form that the answer takes."""

    encoding_format: EncodingFormat = "float"


def parse_embeddings(body: Body, max_inputs: int) -> WireRequest:
    """Check a request's body, exact in every type; RequestError names the first offender."""
    return _parse(body, max_inputs, _FIELDS)


def _parse(body: Body, max_inputs: int, fields: Sequence[str]) -> WireRequest:
    value = _object(body)
    unknown = next((key for key in value if key not in fields), None)
    if unknown is not None:
        name = _clip(unknown)
        raise RequestError(
            "unknown_parameter",
            f"unknown field {name!r}; accepted: {', '.join(fields)}",
            name,
        )
    if "input" not in value:
        raise RequestError(
            "missing_parameter", "input is missing; a string or an array of strings", "input"
        )
    texts, token_ids = _input(value["input"], max_inputs)
    checked = {key: check(value[key], key) for key, check in _CHECKS.items() if key in value}
    checked.pop("user", None)
    checked = {key: v for key, v in checked.items() if v is not None}
    if "input_type" in checked and "prompt_name" in checked:
        raise RequestError(
            "invalid_value", "input_type and prompt_name exclude each other; send one", "input_type"
        )
    return WireRequest(
        model=checked.pop("model", None), texts=texts, token_ids=token_ids, **checked
    )


def parse_tokenize(body: Body, max_inputs: int) -> EmbeddingsRequest:
    """Check the body of POST tokenize: a request for embeddings less what shapes vectors."""
    return _parse(body, max_inputs, _TOKENIZE_FIELDS)


def named_model(body: Body) -> str | None:
    """Return the `model` of a body, or None if there is none; the full parse says what is wrong."""
    try:
        model = _object(body).get("model")
    except RequestError:
        return None
    return model if isinstance(model, str) else None


def _object(body: Body) -> dict[str, Any]:
    memory.check(_PARSED * len(body))
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if "memory" in error.msg:
            raise MemoryError(error.msg) from error
        raise RequestError(
            "invalid_json", "the body is not valid JSON in UTF-8; a JSON object is accepted"
        ) from None
    if not isinstance(value, dict):
        raise RequestError("invalid_type", f"the body is {_kind(value)}; an object is accepted")
    return value


def _input(value: Any, max_inputs: int) -> tuple[list[str] | None, list[list[int]] | None]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise RequestError(
            "invalid_type",
            f"input is {_kind(value)}; a string or an array of strings is accepted",
            "input",
        )
    if not value:
        raise RequestError("empty_input", "input is an empty array; 1 or more are needed", "input")
    if type(value[0]) is int:  # one text's token ids
        value = [value]
    if len(value) > max_inputs:
        raise RequestError(
            "too_many_inputs",
            f"input has {len(value)} items; at most {max_inputs} are accepted in one request",
            "input",
        )
    if isinstance(value[0], list):
        return None, _token_ids(value)
    if set(map(type, value)) != {str} or "" in value:
        raise _first_offender(value)
    return value, None


def _first_offender(value: list[Any]) -> RequestError:
    i, text = next((i, v) for i, v in enumerate(value) if not isinstance(v, str) or not v)
    if isinstance(text, str):
        return RequestError("empty_input", f"input[{i}] is an empty string", f"input[{i}]")
    return _wrong_type(f"input[{i}]", text, "a string")


def _token_ids(value: list[Any]) -> list[list[int]]:
    for i, ids in enumerate(value):
        if not isinstance(ids, list) or any(type(token) is not int for token in ids):
            raise _wrong_type(f"input[{i}]", ids, "an array of integers, like the first item,")
        if not ids:
            raise RequestError("empty_input", f"input[{i}] has no token ids", f"input[{i}]")
    return value


def _check_string(value: Any, key: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise _wrong_type(key, value, "a string")
    return value


def _choice(*choices: str) -> Callable[[Any, str], str | None]:
    def check(value: Any, key: str) -> str | None:
        text = _check_string(value, key)
        if text is not None and text not in choices:
            accepted = ", ".join(f'"{choice}"' for choice in choices)
            raise RequestError("invalid_value", f'{key} is "{_clip(text)}"; one of {accepted}', key)
        return text

    return check


def _dimensions(value: Any, key: str) -> int | None:
    if value is None:
        return None
    if type(value) is not int:
        raise _wrong_type(key, value, "an integer")
    if value < 1:
        raise RequestError("invalid_value", f"dimensions is {value}; 1 or more", key)
    return value


_CHECKS: Mapping[str, Callable[[Any, str], Any]] = {
    "model": _check_string,
    "encoding_format": _choice("float", "base64"),
    "dimensions": _dimensions,
    "user": _check_string,
    "input_type": _choice("query", "document"),
    "prompt_name": _check_string,
    "truncate": _choice("error", "end", "start"),
}
_FIELDS = ("input", *_CHECKS)
_TOKENIZE_FIELDS = ("input", "model", "user", "input_type", "prompt_name", "truncate")

_KINDS: Mapping[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    type(None): "null",
}


def _kind(value: Any) -> str:
    return _KINDS[type(value)]


def _wrong_type(param: str, value: Any, accepted: str) -> RequestError:
    return RequestError("invalid_type", f"{param} is {_kind(value)}; {accepted} is accepted", param)


def _clip(text: str, limit: int = 64) -> str:
    """Shorten what a client sent, for an error message."""
    return text if len(text) <= limit else text[:limit] + "…"
