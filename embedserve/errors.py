"""Request errors (status, type, code) and start-up errors (exit status)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from embedserve.escapes import escaped, shortened

INVALID_REQUEST = "invalid_request_error"
AUTHENTICATION = "authentication_error"
RATE_LIMIT = "rate_limit_error"
SERVER = "server_error"

# code -> (HTTP status, OpenAI error type). docs/api.md's table is made from it.
ERRORS: Mapping[str, tuple[int, str]] = {
    "invalid_http": (400, INVALID_REQUEST),
    "invalid_json": (400, INVALID_REQUEST),
    "invalid_type": (400, INVALID_REQUEST),
    "missing_parameter": (400, INVALID_REQUEST),
    "unknown_parameter": (400, INVALID_REQUEST),
    "invalid_value": (400, INVALID_REQUEST),
    "empty_input": (400, INVALID_REQUEST),
    "too_many_inputs": (400, INVALID_REQUEST),
    "too_many_tokens": (400, INVALID_REQUEST),
    "input_too_long": (400, INVALID_REQUEST),
    "context_length_exceeded": (400, INVALID_REQUEST),
    "token_ids_not_accepted": (400, INVALID_REQUEST),
    "token_id_out_of_range": (400, INVALID_REQUEST),
    "dimensions_not_supported": (400, INVALID_REQUEST),
    "prompt_not_found": (400, INVALID_REQUEST),
    "invalid_api_key": (401, AUTHENTICATION),
    "model_not_found": (404, INVALID_REQUEST),
    "unknown_url": (404, INVALID_REQUEST),
    "method_not_allowed": (405, INVALID_REQUEST),
    "request_timeout": (408, INVALID_REQUEST),
    "fingerprint_mismatch": (412, INVALID_REQUEST),
    "request_too_large": (413, INVALID_REQUEST),
    "uri_too_long": (414, INVALID_REQUEST),
    "unsupported_media_type": (415, INVALID_REQUEST),
    "unsupported_encoding": (415, INVALID_REQUEST),
    "headers_too_large": (431, INVALID_REQUEST),
    "queue_full": (429, RATE_LIMIT),
    "inference_failed": (500, SERVER),
    "non_finite_embedding": (500, SERVER),
    "internal_error": (500, SERVER),
    "unsupported_transfer_coding": (501, INVALID_REQUEST),
    "out_of_memory": (503, SERVER),
    "not_ready": (503, SERVER),
    "too_many_connections": (503, SERVER),
    "draining": (503, SERVER),
    "deadline_exceeded": (504, SERVER),
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
        self.status, self.type = ERRORS[code]
        self.message = message
        self.param = param
        self.headers = dict(headers or {})


class ClientLeftError(Exception):
    """The client closed its connection: nobody is left to answer."""


class DeviceLostError(Exception):
    """The device fails even at the smallest pass; only a new process can use it again."""


class Exit(IntEnum):
    """The exit statuses of sysexits.h that are used here."""

    USAGE = 64  # the command line is wrong
    DATAERR = 65  # a model's files are wrong or not understood
    NOINPUT = 66  # a file or directory is missing
    UNAVAILABLE = 69  # a source, an address or a provider is not available
    SOFTWARE = 70  # a check of our own work failed
    CANTCREAT = 73  # an output cannot be written
    CONFIG = 78  # the configuration or an artifact is invalid


class StartupError(Exception):
    """The command cannot start or finish: one line on standard error and an exit status."""

    def __init__(self, message: str, status: Exit = Exit.CONFIG) -> None:
        # A message may quote anything; readers of standard error expect one line of text.
        super().__init__(escaped(shortened(message, MOST_CHARACTERS)))
        self.status = status
