"""A process's file operations below a directory: counted, failed or held, whoever makes them.

By the kernel's own means (seccomp, user notification: `man 2 seccomp_unotify`), so that libraries
in C++ and Rust are seen like Python, and without rights: the process that is watched installs a
filter and sends its listener; each operation then waits until who watches fails it or lets it go
on.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import select
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

# x86-64's numbers of what changes files or says that it could not (linux: asm/unistd_64.h), and
# which argument says of what: an open file, a path, or a directory and a path in it.
CALLS: Mapping[int, tuple[str, str, int]] = {
    1: ("write", "file", 0),
    18: ("pwrite64", "file", 0),
    20: ("writev", "file", 0),
    296: ("pwritev", "file", 0),
    328: ("pwritev2", "file", 0),
    40: ("sendfile", "file", 0),
    326: ("copy_file_range", "file", 2),
    74: ("fsync", "file", 0),
    75: ("fdatasync", "file", 0),
    77: ("ftruncate", "file", 0),
    285: ("fallocate", "file", 0),
    91: ("fchmod", "file", 0),
    3: ("close", "file", 0),
    2: ("open", "path", 0),
    76: ("truncate", "path", 0),
    82: ("rename", "path", 0),
    83: ("mkdir", "path", 0),
    84: ("rmdir", "path", 0),
    85: ("creat", "path", 0),
    87: ("unlink", "path", 0),
    90: ("chmod", "path", 0),
    86: ("link", "path", 1),
    88: ("symlink", "path", 1),
    257: ("openat", "at", 0),
    258: ("mkdirat", "at", 0),
    263: ("unlinkat", "at", 0),
    264: ("renameat", "at", 0),
    265: ("linkat", "at", 2),
    266: ("symlinkat", "at", 1),
    268: ("fchmodat", "at", 0),
    316: ("renameat2", "at", 0),
    437: ("openat2", "at", 0),
}
# Opens that do not write pass unseen: the argument that holds the flags.
_FLAGS_ARGUMENT = {2: 1, 257: 2}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_OPENAT2 = 437
_CLOSE = 3

_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER = 317, 1, 8
_PR_SET_NO_NEW_PRIVS = 38
_X86_64 = 0xC000003E
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # ioctls of linux/seccomp.h
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")
_CONTINUE = 1
_AT_FDCWD = -100

# Called with the number of an operation from 0 on and its words ("write m/model.onnx"), while it
# waits: an errno fails it, 0 lets it go on.
Decide = Callable[[int, str], int]


# -- in the process that is watched ----------------------------------------------------------------


def install(link: socket.socket) -> None:
    """Have this process's operations answered by who holds the other end of `link`, until it ends.

    What it starts later, by fork or exec, is watched too.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    program = _program()
    instructions = ctypes.create_string_buffer(program, len(program))
    filter_ = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(instructions))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    listener = libc.syscall(_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, filter_)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp(SECCOMP_FILTER_FLAG_NEW_LISTENER)")
    socket.send_fds(link, [b"x"], [listener])
    link.detach()  # it and the listener stay open: closing them would wait for an answer
    # who watches ends with this process, by the listener's hang-up


def _program() -> bytes:
    """Return the filter in BPF: every call of CALLS is answered by the listener, others pass."""
    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    allow, ask = 0x7FFF0000, 0x7FC00000

    def step(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, k)

    program = [step(load, 4), step(equal, _X86_64, 1, 0), step(give, allow), step(load, 0)]
    for number in CALLS:
        if number in _FLAGS_ARGUMENT:
            low = 16 + 8 * _FLAGS_ARGUMENT[number]
            program += [step(equal, number, 0, 4), step(load, low), step(any_bit, _WRITING, 0, 1)]
            program += [step(give, ask), step(give, allow)]
        else:
            program += [step(equal, number, 0, 1), step(give, ask)]
    return b"".join([*program, step(give, allow)])


# -- in the process that watches -------------------------------------------------------------------


def watch(link: socket.socket, directory: Path, decide: Decide) -> list[str]:
    """Answer a process's operations until it ends; return those below `directory`, in order."""
    _, (listener,), _, _ = socket.recv_fds(link, 1, 1)
    seen: list[str] = []
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    try:
        while not any(event & select.POLLHUP for _, event in poll.poll()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it was killed
                _answer(listener, directory, decide, seen)
    finally:
        os.close(listener)
    return seen


def _answer(listener: int, directory: Path, decide: Decide, seen: list[str]) -> None:
    buffer = bytearray(_NOTIFICATION.size)
    fcntl.ioctl(listener, _RECEIVE, buffer)
    identity, pid, _, number, _, _, *arguments = _NOTIFICATION.unpack(buffer)
    failure = 0
    try:
        words = _words(pid, number, arguments, directory)
        if words is not None:
            seen.append(words)
            failure = decide(len(seen) - 1, words)
    finally:
        answer = (0, -failure, 0) if failure else (0, 0, _CONTINUE)
        fcntl.ioctl(listener, _SEND, bytearray(_ANSWER.pack(identity, *answer)))


def _words(pid: int, number: int, arguments: list[int], directory: Path) -> str | None:
    """Return "name path", the path from `directory`; None for what does not change its files."""
    name, kind, place = CALLS[number]
    if kind == "file":
        path = _open_file(pid, arguments[place])
        if number == _CLOSE and not _writes(pid, arguments[place]):
            return None
    else:
        path = _text(pid, arguments[place + (kind == "at")])
        base = ctypes.c_int32(arguments[place]).value if kind == "at" else _AT_FDCWD
        where = _link(pid, "cwd") if base == _AT_FDCWD else _open_file(pid, base)
        path = os.path.join(where, path)  # noqa: PTH118  # as the kernel joins them
    if number == _OPENAT2:
        (flags,) = struct.unpack("=Q", _memory(pid, arguments[2], 8))
        if not flags & _WRITING:
            return None
    below = Path(os.path.normpath(path))
    return f"{name} {below.relative_to(directory)}" if below.is_relative_to(directory) else None


def _link(pid: int, name: str) -> str:
    return str(Path(f"/proc/{pid}/{name}").readlink())


def _open_file(pid: int, descriptor: int) -> str:
    try:
        return _link(pid, f"fd/{descriptor}")
    except FileNotFoundError:  # no such descriptor: the kernel will say so
        return ""


def _writes(pid: int, descriptor: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().splitlines()
    except FileNotFoundError:
        return False
    flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
    return flags & os.O_ACCMODE != os.O_RDONLY


def _text(pid: int, address: int) -> str:
    page = 4096
    data = b""
    while b"\0" not in data:  # never past the end of a page: the next may not be there
        data += _memory(pid, address + len(data), page - (address + len(data)) % page)
    return os.fsdecode(data[: data.index(b"\0")])


def _memory(pid: int, address: int, size: int) -> bytes:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
        memory.seek(address)
        return memory.read(size)


def missing() -> str | None:
    """Return what this host lacks for watching a process, None where it can be done."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "operations are counted on Linux on x86-64 only"
    libc = ctypes.CDLL(None, use_errno=True)
    # Asked for without a filter: EFAULT where the call is there and allowed.
    libc.syscall(_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, None)
    number = ctypes.get_errno()
    return None if number == errno.EFAULT else f"seccomp user notification: {os.strerror(number)}"
