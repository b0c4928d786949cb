"""Serve where nothing can be written and nobody be reached: python -m tests.faults.confined COMMAND

In namespaces of its own every file system is read-only, the only network is the loopback of this
process, and the environment is empty. Everything is asked of the server that the command starts,
then it is ended. Exit status 0, UNABLE where the host gives no such namespaces, else 1.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

from tests.faults.everything import ask_everything

UNABLE = 75  # EX_TEMPFAIL
SECONDS = 30.0
_NEW_USER, _NEW_MOUNTS, _NEW_NETWORK = 0x10000000, 0x00020000, 0x40000000
_MOUNT_SETATTR = 442  # the same on every architecture
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_READ_ONLY, _PRIVATE = 0x1, 0x40000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1


def confine() -> None:
    """Leave the process its loopback and files that it can only read. OSError where forbidden.

    The process must have one thread.
    """
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(_NEW_USER | _NEW_MOUNTS | _NEW_NETWORK), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    attributes = struct.pack("=4Q", _READ_ONLY, 0, _PRIVATE, 0)  # struct mount_attr
    where = (_AT_FDCWD, b"/", _AT_RECURSIVE, attributes, len(attributes))
    _check(libc.syscall(_MOUNT_SETATTR, *where), "mount_setattr")
    with socket.socket() as one:
        fcntl.ioctl(one, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _serve(command: list[str]) -> None:
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={})
    assert process.stderr is not None
    try:
        seen = b""
        for line in process.stderr:
            seen += line
            if found := re.search(rb"serving .* on http://([\d.]+):(\d+)", line):
                break
        else:
            sys.exit(f"it ended with {process.wait()}: {seen.decode()}")
        ask_everything(found[1].decode(), int(found[2]))
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=SECONDS)[1].decode()
        if process.returncode != 0 or "Traceback" in rest:
            sys.exit(f"it ended with {process.returncode}: {rest}")
    finally:
        process.kill()


if __name__ == "__main__":
    try:
        confine()
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(UNABLE)
    _serve(sys.argv[1:])
