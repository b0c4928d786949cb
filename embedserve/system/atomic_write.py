"""Writes a file completely or not at all: under another name, synced, then renamed."""

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
    """Let `content` write `temporary`, in the directory of `path`, then rename it to `path`.

    Follows no link: it replaces whatever has either name. `like` gives the file's owner and mode.
    If writing fails (OSError, or what `content` raises), `path` is unchanged and `temporary` gone.
    """
    temporary.unlink(missing_ok=True)  # left by a run that was killed
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
    """Sync a file, or the names in a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
