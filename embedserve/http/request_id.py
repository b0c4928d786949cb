"""A request's id: the client's if it is well-formed, else a generated one."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Iterator
from typing import cast

from starlette.types import Scope

_REQUEST_ID = re.compile(r"[\w.-]{1,128}", re.ASCII)


def request_ids() -> Iterator[str]:
    """Ids without end: unique across processes by their first part, within one by the second."""
    process = secrets.token_hex(8)
    for number in itertools.count(1):
        yield f"req_{process}{number:08x}"


def given_id(scope: Scope) -> bytes | None:
    """The client's X-Request-Id when it is well-formed."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value.decode("latin-1")):
            return cast(bytes, value)
    return None
