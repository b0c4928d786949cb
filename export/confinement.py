"""Confines a process: no network, no file to write, no other program, limited resources.

Uses the kernel's seccomp and Landlock (`man 2 seccomp`, `man 7 landlock`), which need no privileges
and bind root as well. Only listed system calls are allowed; all others fail with EPERM.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# name -> numbers on x86-64 and aarch64 (linux: asm/unistd_64.h, asm-generic/unistd.h); None: no
# such call. For memory, reading, writing to open files, and exiting.
_ALLOWED: Mapping[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "getpid": (39, 172),
    "exit": (60, 93),
    "getcwd": (79, 17),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "clock_gettime": (228, 113),
    "exit_group": (231, 94),
    "newfstatat": (262, 79),
    "getrandom": (318, 278),
    "statx": (332, 291),
}
# Opening, only to read: the call's number, and which argument has the flags.
_OPENING: Mapping[str, tuple[tuple[int, int] | None, tuple[int, int] | None]] = {
    "open": ((2, 1), None),
    "openat": ((257, 2), (56, 2)),
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_TMPFILE", 0)


@dataclass(frozen=True, slots=True)
class _Architecture:
    """What differs between processors: audit number, seccomp's number, column of the tables."""

    audit: int
    seccomp: int
    column: int


_ARCHITECTURES: Mapping[str, _Architecture] = {
    "x86_64": _Architecture(0xC000003E, 317, 0),
    "aarch64": _Architecture(0xC00000B7, 277, 1),
}
_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _ALL_THREADS = 1, 1


class UnavailableError(Exception):
    """Why this system cannot confine a process."""


def confine(readable: Path, memory: int, cpu_seconds: int, written: int) -> None:
    """Confine this process, with all its threads, until it ends.

    It may read `readable` and its open files, allocate `memory` bytes more, and write to open
    files, which may have at most `written` bytes. UnavailableError if the system cannot do this;
    the process must then end.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    architecture = _ARCHITECTURES.get(platform.machine())
    if platform.system() != "Linux" or architecture is None:
        raise UnavailableError(
            f"{platform.system()} on {platform.machine()}; Linux on x86-64 or aarch64 is needed"
        )
    _limit(memory, cpu_seconds, written)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise UnavailableError(f"prctl: {os.strerror(ctypes.get_errno())}")
    _restrict_reading(libc, readable)
    program = _filter(architecture)
    instructions = ctypes.create_string_buffer(program, len(program))
    pointer = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(instructions))
    if libc.syscall(architecture.seccomp, _SET_MODE_FILTER, _ALL_THREADS, pointer):
        raise UnavailableError(f"seccomp: {os.strerror(ctypes.get_errno())}")
    _prove()


def _limit(memory: int, cpu_seconds: int, written: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + memory,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: written,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (least, least))


# -- seccomp -----------------------------------------------------------------------------------


def _filter(architecture: _Architecture) -> bytes:
    """Return the filter in BPF: listed calls pass, all others fail with EPERM."""
    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM

    def step(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, k)

    # struct seccomp_data: the call's number at 0, the architecture at 4, arguments from 16 on.
    program = [step(load, 4), step(equal, architecture.audit, 1, 0), step(give, kill)]
    program.append(step(load, 0))
    for numbers in _ALLOWED.values():
        if (number := numbers[architecture.column]) is not None:
            program += [step(equal, number, 0, 1), step(give, allow)]
    for places in _OPENING.values():
        if (place := places[architecture.column]) is not None:
            number, argument = place
            program += [step(equal, number, 0, 4), step(load, 16 + 8 * argument)]
            program += [step(any_bit, _WRITING, 0, 1), step(give, refuse), step(give, allow)]
    return b"".join([*program, step(give, refuse)])


def _prove() -> None:
    """Try a forbidden call: a system may accept the filter but not apply it."""
    with contextlib.suppress(PermissionError):
        socket.socket().close()
        raise UnavailableError("seccomp is accepted but not applied")


# -- Landlock ----------------------------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_PATH_BENEATH = 1
_READ_FILE, _ALL_OF_FIRST_VERSION = 1 << 2, (1 << 13) - 1


def _restrict_reading(libc: ctypes.CDLL, readable: Path) -> None:
    """Allow only `readable` to be opened. A kernel without Landlock restricts nothing here."""
    rights = struct.pack("=Q", _ALL_OF_FIRST_VERSION)
    ruleset = libc.syscall(_CREATE_RULESET, rights, len(rights), 0)
    if ruleset < 0:
        return
    file = os.open(readable, os.O_RDONLY | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", _READ_FILE, file)
        if libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0):
            raise UnavailableError(f"Landlock: {os.strerror(ctypes.get_errno())}")
        if libc.syscall(_RESTRICT_SELF, ruleset, 0):
            raise UnavailableError(f"Landlock: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(file)
        os.close(ruleset)
