"""Request errors (status, type, code) and start-up errors (exit status)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

from embedserve.escapes import escaped, shortened

INVALID_REQUEST = "invalid_request_error"
AUTHENTICATION = "authentication_error"
RATE_LIMIT = "rate_limit_error"
SERVER = "server_error"


class ErrorKind(NamedTuple):
    """One error code: HTTP status, OpenAI's error type, what it means, and when to retry."""

    status: int
    type: str
    meaning: str
    retry: str


def _request(
    status: int, meaning: str, retry: str = "no", kind: str = INVALID_REQUEST
) -> ErrorKind:
    return ErrorKind(status, kind, meaning, retry)


def _server(status: int, meaning: str, retry: str) -> ErrorKind:
    return ErrorKind(status, SERVER, meaning, retry)


# The table in docs/api.md is made from this one.
ERRORS: Mapping[str, ErrorKind] = {
    "invalid_http": _request(
        400, "invalid HTTP/1.1, CONNECT, or not exactly one Host", "no: fix the client"
    ),
    "invalid_json": _request(400, "the body is not JSON in UTF-8"),
    "invalid_type": _request(400, "a value of the wrong type"),
    "missing_parameter": _request(400, "no `input`, or no `model` when several are served"),
    "unknown_parameter": _request(400, "a field that does not exist"),
    "invalid_value": _request(
        400, "a value that the field does not accept, or two fields that exclude each other"
    ),
    "empty_input": _request(
        400,
        "no text, an empty one, or one without tokens for this model (static "
        "embeddings give zeros for it, as in sentence-transformers)",
    ),
    "too_many_inputs": _request(400, "more texts than `max_inputs`", "in smaller requests"),
    "too_many_tokens": _request(
        400, "more tokens in total than `max_request_tokens`", "in smaller requests"
    ),
    "input_too_long": _request(
        400,
        "a text of more than 250 characters for each token of the model's limit",
        "shorten it: `truncate` does not help",
    ),
    "context_length_exceeded": _request(
        400,
        'a text past the model\'s limit, with `"truncate": "error"`',
        "shorten it, or let it be cut",
    ),
    "token_ids_not_accepted": _request(
        400, "token ids, which may come from another tokenizer", "send strings"
    ),
    "token_id_out_of_range": _request(400, "a token id that is not in the model's vocabulary"),
    "dimensions_not_supported": _request(400, "dimensions that this model does not support"),
    "prompt_not_found": _request(400, "a prompt that this model does not have"),
    "invalid_api_key": _request(401, "no valid API key", "with a valid key", AUTHENTICATION),
    "model_not_found": _request(404, "a model that is not served"),
    "unknown_url": _request(404, "no such route"),
    "method_not_allowed": _request(405, "a method that the route does not accept"),
    "request_timeout": _request(
        408, "head or body came too slowly; the connection is closed", "yes, on a faster connection"
    ),
    "fingerprint_mismatch": _request(
        412,
        "`X-Expect-Fingerprint` is not the model's",
        "no: [re-index](operating.md#re-index-by-fingerprint)",
    ),
    "request_too_large": _request(
        413, "a body of more than `max_body_bytes`", "in smaller requests"
    ),
    "uri_too_long": _request(414, "a URL of more than 8 KiB"),
    "unsupported_media_type": _request(415, "a Content-Type other than application/json"),
    "unsupported_encoding": _request(415, "a compressed body", "uncompressed"),
    "headers_too_large": _request(431, "headers of more than 32 KiB or more than 100 fields"),
    "queue_full": _request(
        429,
        "the request would wait too long, or requests in flight hold too much memory",
        "after `Retry-After`",
        RATE_LIMIT,
    ),
    "inference_failed": _server(
        500, "the model failed on this text alone", "no (`x-should-retry: false`)"
    ),
    "non_finite_embedding": _server(
        500, "the vector of this text is not finite, or zero", "no (`x-should-retry: false`)"
    ),
    "internal_error": _server(
        500, "a bug; the log has its traceback under the request's id", "once"
    ),
    "unsupported_transfer_coding": _request(501, "a Transfer-Encoding other than `chunked`"),
    "out_of_memory": _server(503, "there was no memory for this request", "after `Retry-After`"),
    "not_ready": _server(
        503,
        "the server is draining, or has lost an inference thread or its GPU; with Ray Serve, no "
        "replica answered",
        "another server",
    ),
    "too_many_connections": _server(
        503, "more open connections than `max_connections`", "later, or another server"
    ),
    "draining": _server(503, "the drain ended before the answer was ready", "another server"),
    "deadline_exceeded": _server(
        504, "the deadline passed before the answer was ready", "with more time"
    ),
}


# Limit for a message: what it quotes may be the whole content of a file.
MOST_CHARACTERS = 4000


class RequestError(Exception):
    """One request cannot be answered; the server goes on.

    `code` is a key of ERRORS; `message` says what was found, what is accepted and where; `param`
    names the offending field ("input[17]"); `headers` are added to the answer.
    """

    def __init__(
        self,
        code: str,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        kind = ERRORS[code]
        self.status, self.type = kind.status, kind.type
        self.message = message
        self.param = param
        self.headers = dict(headers or {})


class ClientLeftError(Exception):
    """The client closed its connection: nobody is left to answer."""


class DeviceLostError(Exception):
    """The device fails even at the smallest pass; only a new process can use it again."""


class Exit(IntEnum):
    """The exit statuses of sysexits.h that are used here."""

    USAGE = 64
    DATAERR = 65
    NOINPUT = 66
    UNAVAILABLE = 69
    SOFTWARE = 70
    CANTCREAT = 73
    CONFIG = 78


# When each is used. The table in docs/configuration.md is made from this one.
EXITS: Mapping[Exit, str] = {
    Exit.USAGE: "the command line is wrong",
    Exit.DATAERR: "a model's files are wrong or not understood",
    Exit.NOINPUT: "a file or directory is missing",
    Exit.UNAVAILABLE: "an address, a provider, every source of a model or a confined process is "
    "not available",
    Exit.SOFTWARE: "a check of our own work failed: vectors or token ids differ from the reference",
    Exit.CANTCREAT: "something cannot be written",
    Exit.CONFIG: "the configuration or an artifact is invalid",
}


class StartupError(Exception):
    """The command cannot start or finish: one line on standard error and an exit status."""

    def __init__(self, message: str, status: Exit = Exit.CONFIG) -> None:
        # A message may quote anything; readers of standard error expect one line of text.
        super().__init__(escaped(shortened(message, MOST_CHARACTERS)))
        self.status = status
