"""API keys: from a file or the environment, compared in constant time, never shown."""

from __future__ import annotations

import base64
import codecs
import hashlib
import hmac
import logging
import os
import re
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from embedserve.errors import Exit, StartupError
from embedserve.system import regular_file

log = logging.getLogger(__name__)

VARIABLE = "EMBEDSERVE_API_KEYS"
_DESCRIPTOR = "EMBEDSERVE_API_KEYS_FD"
# A key holds no separator and does not begin like a comment.
_KEY = re.compile(r"(?!#)[\x21-\x2b\x2d-\x7e]{8,512}")
_ACCEPTED = (
    "a key has 8 to 512 printable ASCII characters, no comma or space, and no # at its start"
)
_SEPARATOR = re.compile(r"\s*[,\n][\s,]*", re.ASCII)
MOST_BYTES = 2**20  # of a file: thousands of keys with comments


class Keys:
    """The accepted keys; false when no key is needed. Owned by the event loop.

    Keeps and compares only digests. Memory may still hold copies of keys, from reading them and
    from requests. A core dump or a debugger can reveal these.
    """

    def __init__(self, path: Path | None, from_environment: Sequence[str] = ()) -> None:
        self._path = path
        self._fixed = [_digest(key) for key in from_environment]
        self._digests = list(dict.fromkeys(self._fixed + (_read(path) if path else [])))

    def __bool__(self) -> bool:
        return bool(self._digests) or self._path is not None

    def accept(self, authorization: str | None) -> bool:
        """Whether an Authorization header holds one of the keys: Bearer KEY, or Basic any:KEY.

        Basic is for browsers, which can send nothing else on their own.
        """
        given = _digest(_credential(authorization or ""))
        # Compares every key, even after a match, so that the time reveals nothing about the keys.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(matches)

    def reload(self) -> None:
        """Read the file again. If that fails, the old keys stay in force."""
        if self._path is None:
            return
        try:
            self._digests = list(dict.fromkeys(self._fixed + _read(self._path)))
        except StartupError as error:
            log.error("API keys not reloaded, the old ones stay in force: %s", error)
        else:
            log.info("API keys reloaded: %d", len(self._digests))


def take_from_environment() -> list[str]:
    """Return the keys of EMBEDSERVE_API_KEYS, separated by commas or line ends.

    /proc shows the environment that a process began with for as long as it lives. So the process
    executes itself again without the keys, and hands them over in a memory file that it closes
    after reading.
    """
    descriptor = os.environ.pop(_DESCRIPTOR, None)
    if descriptor is not None:
        return _split(_handed_over(descriptor), VARIABLE)
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        return []
    keys = _split(text, VARIABLE)  # reports unusable keys before anything else happens
    environment = {**os.environ, **to_hand_over(keys)}
    # The same script, or the same -m with the same options, so that Python looks for modules where
    # it did at first, and above all not in the working directory.
    arguments = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, arguments, environment)  # noqa: S606  # this very program again


def to_hand_over(keys: Sequence[str]) -> dict[str, str]:
    """Write keys to a memory file; return the environment that tells a new process where they are.

    Every process that inherits the descriptor can read them.
    """
    if not keys:
        return {}
    fd = os.memfd_create("keys", 0)
    os.write(fd, "\n".join(keys).encode())
    return {_DESCRIPTOR: str(fd)}


def _handed_over(descriptor: str) -> str:
    try:
        number = int(descriptor)
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not from an earlier start")
        # From its start, whatever another process has read of it.
        content = os.pread(number, status.st_size, 0)
        os.close(number)
        return content.decode()
    except (OSError, ValueError, OverflowError) as error:
        raise StartupError(f"environment: {_DESCRIPTOR} must not be set") from error


def _credential(header: str) -> str:
    scheme, _, value = header.strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
        except ValueError:  # not base64, or not UTF-8
            return ""
    return ""


def _read(path: Path) -> list[bytes]:
    """Return the digests of a file's keys, one per line; skip empty lines and comments (#).

    Error messages never quote the file: any word may be a key.
    """
    try:
        content = regular_file.read(path, MOST_BYTES)
    except OSError as error:
        raise StartupError(f"{path}: API keys cannot be read: {error}", Exit.NOINPUT) from error
    digests: list[bytes] = []
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        line = line.strip(b" \t\r")
        if line and not line.startswith(b"#"):
            digests.append(_line(line, f"{path}: line {number}"))
    if not digests:
        raise StartupError(f"{path}: holds no API key; write one per line")
    return digests


def _line(line: bytes, where: str) -> bytes:
    words = re.split(rb"[\s,]+", line)
    if len(words) > 1:
        raise StartupError(
            f"{where} holds {len(words)} words or keys; write one key per line, and a comment on "
            "its own line that begins with #"
        )
    if not _KEY.fullmatch(key := line.decode("latin-1")):
        raise StartupError(f"{where} is not a key: {_ACCEPTED}")
    return _digest(key)


def _split(text: str, where: str) -> list[str]:
    """Split a variable into its keys, which commas or line ends separate."""
    keys = _SEPARATOR.split(text.strip())
    for number, key in enumerate(keys, 1):
        if not _KEY.fullmatch(key):
            raise StartupError(f"{where}: key {number} of {len(keys)} is not a key: {_ACCEPTED}")
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
