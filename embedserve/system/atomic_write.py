"""Writes a file whole or not at all: under another name, to the disk, then by a rename."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def write(
    path: Path,
    temporary: Path,
    content: Callable[[BinaryIO], object],
    like: os.stat_result | None = None,
) -> None:
    """Let `content` write `temporary`, in the directory of `path`, and give it the name `path`.

    No link is followed: what has either name is replaced. `like`: owner and mode of the file. When
    it fails (OSError, or what `content` raises), `path` is as before and `temporary` is gone.
    """
    temporary.unlink(missing_ok=True)  # of a run that was killed
    try:
        with os.fdopen(os.open(temporary, _FLAGS, 0o666), "wb") as file:
            content(file)
            if like is not None:
                os.fchown(file.fileno(), like.st_uid, like.st_gid)
                os.fchmod(file.fileno(), like.st_mode & 0o7777)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
