"""A small file system for one process alone: tmpfs in namespaces of its own, without rights."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000
_RECURSIVE, _PRIVATE = 0x4000, 0x40000


def mount(directory: Path, size: int) -> None:
    """Mount a file system of `size` bytes that this process alone sees. OSError where forbidden.

    The process must have one thread.
    """
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(_NEW_USER | _NEW_MOUNTS), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _check(libc.mount(None, b"/", None, _RECURSIVE | _PRIVATE, None), "mount")
    options = f"size={size}".encode()
    _check(libc.mount(b"tmpfs", os.fsencode(directory), b"tmpfs", 0, options), "mount")


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
