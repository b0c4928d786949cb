"""Reads files made by others: only regular files, without blocking, up to a size."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

# Far above any such file: a vocabulary of 250,000 words takes 17 MB of tokenizer.json.
MOST_BYTES = 512 * 2**20
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}


def check(path: Path) -> None:
    """Raise OSError if `path`, or what it links to, is not a regular file. Opens nothing."""
    _check(path, path.stat())


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading. OSError for any other kind, at once.

    Opening a pipe would wait for a writer, and a device may act when it is opened.
    """
    check(path)
    # With O_NONBLOCK, a pipe that took its place since the check does not block either.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb")
    try:
        _check(path, os.fstat(descriptor))
    except OSError:
        file.close()
        raise
    return file


def read(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file of at most `most` bytes. OSError otherwise."""
    with open_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most} bytes", str(path))
    return content


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """Return the same as text. UnicodeDecodeError, a ValueError, if it is not UTF-8."""
    return read(path, most).decode("utf-8")


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "not a file")
        raise OSError(errno.EINVAL, f"is {kind}; a regular file is accepted", str(path))
