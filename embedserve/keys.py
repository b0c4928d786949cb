"""API keys: from a file or the environment, compared in constant time, never shown."""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from embedserve.errors import Exit, StartupError

log = logging.getLogger(__name__)

VARIABLE = "EMBEDSERVE_API_KEYS"
_DESCRIPTOR = "EMBEDSERVE_API_KEYS_FD"
_KEY = re.compile(r"[\x21-\x7e]{8,512}")


class Keys:
    """The keys that are accepted; none: every request is. Owned by the event loop.

    Digests are compared, and only they are kept. Memory may hold copies of keys all the same, of
    reading them and of requests that bring them: whoever reads it, in a core dump or with a
    debugger, can find them.
    """

    def __init__(self, path: Path | None, from_environment: Sequence[str] = ()) -> None:
        self._path = path
        self._fixed = [_digest(key) for key in from_environment]
        self._digests = self._fixed + (_read(path) if path else [])

    def __bool__(self) -> bool:
        return bool(self._digests) or self._path is not None

    def accept(self, authorization: str | None) -> bool:
        """Whether an Authorization header holds one of the keys: Bearer KEY, or Basic any:KEY.

        Basic is for browsers, which can send nothing else of their own accord.
        """
        given = _digest(_credential(authorization or ""))
        # Every key is compared, whichever matches: the time says nothing about the keys.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(matches)

    def reload(self) -> None:
        """Read the file again; keys that cannot be read leave the old ones in force."""
        if self._path is None:
            return
        try:
            self._digests = self._fixed + _read(self._path)
        except StartupError as error:
            log.error("API keys not reloaded, the old ones stay in force: %s", error)
        else:
            log.info("API keys reloaded: %d", len(self._digests))


def take_from_environment() -> list[str]:
    """Return the keys of EMBEDSERVE_API_KEYS, separated by commas or white space.

    A process's first environment can be read in /proc as long as it lives. So the process
    replaces itself once, and hands the keys over through memory that is closed when read.
    """
    descriptor = os.environ.pop(_DESCRIPTOR, None)
    if descriptor is not None:
        with os.fdopen(int(descriptor), "r", encoding="utf-8") as file:
            return _split(file.read(), VARIABLE)
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        return []
    _split(text, VARIABLE)  # unusable keys are said here, before anything else happens
    fd = os.memfd_create("keys", 0)
    os.write(fd, text.encode())
    os.lseek(fd, 0, os.SEEK_SET)
    environment = {**os.environ, _DESCRIPTOR: str(fd)}
    arguments = [sys.executable, "-m", "embedserve", *sys.argv[1:]]
    os.execve(sys.executable, arguments, environment)  # noqa: S606  # this very program again


def _credential(header: str) -> str:
    scheme, _, value = header.strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
        except ValueError:  # no base64, or no text in it
            return ""
    return ""


def _read(path: Path) -> list[bytes]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"{path}: API keys cannot be read: {error}", Exit.NOINPUT) from error
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [_digest(key) for key in _split("\n".join(lines), str(path))]


def _split(text: str, where: str) -> list[str]:
    keys = re.split(r"[\s,]+", text.strip())
    for number, key in enumerate(keys, 1):
        if not _KEY.fullmatch(key):
            raise StartupError(
                f"{where}: key {number} of {len(keys)} is not 8 to 512 printable ASCII characters"
            )
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
