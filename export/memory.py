"""Memory of this machine and this process, from the kernel's files below /proc."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from embedserve.system import host


def available(root: Path = Path("/")) -> int:
    """Bytes that this machine or container has free now."""
    free = _kilobytes(root / "proc/meminfo", "MemAvailable")
    limit = host.read(root).memory
    return free if limit is None else min(free, limit.value)


def forget_peak() -> None:
    """Reset `peak`; if the system does not allow that, the old peak stays."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak() -> int:
    """The most bytes of memory that this process had since `forget_peak`."""
    return _kilobytes(Path("/proc/self/status"), "VmHWM")


def _kilobytes(path: Path, key: str) -> int:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return 0
    found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
