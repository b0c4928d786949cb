"""What another process uses, read from /proc."""

from __future__ import annotations

import os
import re
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes of resident memory."""
    return _status(pid, "VmRSS") * 1024


def peak(pid: int) -> int:
    """The most bytes of resident memory, since its start or `forget_peak`."""
    return _status(pid, "VmHWM") * 1024


def forget_peak(pid: int) -> None:
    """Measure the peak from now on: 5 stands for it (proc(5))."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def bound(log: Path) -> int:
    """The most bytes of memory that a server may use, as it printed at its start."""
    found = re.search(r"at most (\d+) MB", log.read_text())
    assert found
    return int(found[1]) * 1_000_000


def threads(pid: int) -> int:
    """How many threads it has."""
    return _status(pid, "Threads")


def descriptors(pid: int) -> int:
    """How many files and sockets it has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def processor(pid: int) -> float:
    """Seconds of processor time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _status(pid: int, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])
