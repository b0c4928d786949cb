"""python tests/attack/pauses.py: print, as they end, the times in which this machine stood still.

A process of its own that sleeps and looks at the clock: where it comes back late, nothing ran, or
far too much. So a server's wait can be told from a pause of the machine under it.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_BEAT_SECONDS = 0.005
_LATE_SECONDS = 0.02  # a busy machine wakes a sleeper within a few milliseconds


class Span(NamedTuple):
    """From when to when, by time.monotonic, which all processes share."""

    start: float
    end: float


def without(span: Span, pauses: Iterable[Span]) -> float:
    """The seconds of `span` that are in none of `pauses`, which do not overlap."""
    inside = (min(span.end, p.end) - max(span.start, p.start) for p in pauses)
    return span.end - span.start - sum(seconds for seconds in inside if seconds > 0)


def found(file: Path) -> list[Span]:
    """The pauses written to `file` so far."""
    lines = file.read_text().splitlines(keepends=True)
    return [Span(*map(float, line.split())) for line in lines if line.endswith("\n")]


@contextlib.contextmanager
def watching(file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Write the machine's pauses to `file`, a line each; yields the process that does."""
    with file.open("w") as out:
        clock = subprocess.Popen([sys.executable, __file__], stdout=out)
        try:
            yield clock
        finally:
            clock.terminate()
            clock.wait()


def main() -> None:
    """Watch until the process is ended."""
    before = time.monotonic()
    while True:
        time.sleep(_BEAT_SECONDS)
        now = time.monotonic()
        if now - before - _BEAT_SECONDS > _LATE_SECONDS:
            print(before + _BEAT_SECONDS, now, flush=True)
        before = now


if __name__ == "__main__":
    main()
