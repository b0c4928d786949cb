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
# What separates keys, or begins a comment in a file, is in none.
_KEY = re.compile(r"(?!#)[\x21-\x2b\x2d-\x7e]{8,512}")
_ACCEPTED = "a key has 8 to 512 printable ASCII characters without commas and a # before them"
_SEPARATOR = re.compile(r"\s*[,\n][\s,]*", re.ASCII)
MOST_BYTES = 2**20  # of a file: some thousand keys, and its comments


class Keys:
    """The keys that are accepted; none: every request is. Owned by the event loop.

    Digests are compared, and only they are kept. Memory may hold copies of keys all the same, of
    reading them and of requests that bring them: whoever reads it, in a core dump or with a
    debugger, can find them.
    """

    def __init__(self, path: Path | None, from_environment: Sequence[str] = ()) -> None:
        self._path = path
        self._fixed = [_digest(key) for key in from_environment]
        self._digests = list(dict.fromkeys(self._fixed + (_read(path) if path else [])))

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
            self._digests = list(dict.fromkeys(self._fixed + _read(self._path)))
        except StartupError as error:
            log.error("API keys not reloaded, the old ones stay in force: %s", error)
        else:
            log.info("API keys reloaded: %d", len(self._digests))


def take_from_environment() -> list[str]:
    """Return the keys of EMBEDSERVE_API_KEYS, separated by commas or line ends.

    A process's first environment can be read in /proc as long as it lives. So the process
    replaces itself once, and hands the keys over through memory that is closed when read.
    """
    descriptor = os.environ.pop(_DESCRIPTOR, None)
    if descriptor is not None:
        return _split(_handed_over(descriptor), VARIABLE)
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        return []
    _split(text, VARIABLE)  # unusable keys are said here, before anything else happens
    fd = os.memfd_create("keys", 0)
    os.write(fd, text.encode())
    os.lseek(fd, 0, os.SEEK_SET)
    environment = {**os.environ, _DESCRIPTOR: str(fd)}
    # The same script, or the same -m with the same options: nothing is looked for elsewhere than
    # it was at first, above all not in the working directory.
    arguments = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, arguments, environment)  # noqa: S606  # this very program again


def _handed_over(descriptor: str) -> str:
    try:
        number = int(descriptor)
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError("not from an earlier start")
        with os.fdopen(number, "r", encoding="utf-8") as file:
            return file.read()
    except (OSError, ValueError, OverflowError) as error:
        raise StartupError(f"environment: {_DESCRIPTOR} is not to be set") from error


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
    """The digests of a file's keys: one a line, lines that begin with # and empty ones left out.

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
        raise StartupError(f"{path}: holds no API key; one a line is accepted")
    return digests


def _line(line: bytes, where: str) -> bytes:
    words = re.split(rb"[\s,]+", line)
    if len(words) > 1:
        raise StartupError(
            f"{where} holds {len(words)} words or keys; one key a line is accepted, and a comment "
            "is a line of its own that begins with #"
        )
    if not _KEY.fullmatch(key := line.decode("latin-1")):
        raise StartupError(f"{where} is not a key: {_ACCEPTED}")
    return _digest(key)


def _split(text: str, where: str) -> list[str]:
    """The keys of a variable: separated by commas or line ends."""
    keys = _SEPARATOR.split(text.strip())
    for number, key in enumerate(keys, 1):
        if not _KEY.fullmatch(key):
            raise StartupError(f"{where}: key {number} of {len(keys)} is not a key: {_ACCEPTED}")
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
