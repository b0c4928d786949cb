"""A step that does what its job says: for tests of export/steps.py."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from embedserve.errors import Exit, StartupError

LOADED_BY: list[int] = []


def load() -> None:
    """Remember the process that has loaded this."""
    if not LOADED_BY:
        LOADED_BY.append(os.getpid())


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do what each key of the job names, and say which process did."""
    result: dict[str, Any] = {"pid": os.getpid(), "loaded_by": LOADED_BY[0]}
    for key, value in job.items():
        result |= _DEEDS[key](value)
    return result


def _allocate(size: int) -> dict[str, Any]:
    return {"allocated": len(b"x" * size)}


def _read(path: str) -> dict[str, Any]:
    return {"read": Path(path).read_text()}


def _write(path: str) -> dict[str, Any]:
    Path(path).write_text("written by the other")
    return {"written": True}


def _import(name: str) -> dict[str, Any]:
    return {"value": importlib.import_module(name).VALUE}


def _refuse(message: str) -> dict[str, Any]:
    raise StartupError(message, Exit.DATAERR)


def _open(path: str) -> dict[str, Any]:
    return {"opened": Path(path).read_text()}


def _divide(by: int) -> dict[str, Any]:
    return {"quotient": 1 / by}


def _kill(number: int) -> dict[str, Any]:
    os.kill(os.getpid(), number)
    return {}


def _exit(status: int) -> dict[str, Any]:
    print("last words", file=sys.stderr, flush=True)
    os._exit(status)


def _memory(size: int) -> dict[str, Any]:
    return {"bytes": len(bytearray(size))}


def _hold(path: str) -> dict[str, Any]:
    with Path(path).open("w"):
        signal.pause()  # until it is killed
    return {}


_DEEDS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "allocate": _allocate,
    "read": _read,
    "write": _write,
    "import": _import,
    "refuse": _refuse,
    "open": _open,
    "divide": _divide,
    "kill": _kill,
    "exit": _exit,
    "memory": _memory,
    "hold": _hold,
}
