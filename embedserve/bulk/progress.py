"""A job's progress on standard error: one line that is updated, or one every 30 s in a log."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, TextIO

from embedserve.bulk.chunks import BadRow
from embedserve.errors import MOST_CHARACTERS
from embedserve.escapes import escaped, shortened

# Seconds between updates of the line on a terminal, and between lines in a log.
REDRAW, WRITE = 0.5, 30.0
# A run shows this many bad rows; the others are counted.
MOST_SHOWN = 20


class State(NamedTuple):
    """Progress: `place` of `end` of the input, and the texts and tokens that this run embedded."""

    place: float
    end: float
    texts: int
    tokens: int


class Progress:
    """Shows what `state` returns, in a thread of its own, inside a with statement."""

    def __init__(
        self,
        state: Callable[[], State],
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state, self._stream, self._clock = state, stream, clock
        self._terminal = stream.isatty()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._bad = 0
        self._began, self._first = clock(), state().place
        self._thread = threading.Thread(target=self._show_all, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        with self._lock:
            if self._terminal:
                self._write("\r\x1b[K")
            if self._bad > MOST_SHOWN:
                self._write(f"embedserve: {self._bad - MOST_SHOWN:,} more bad rows\n")

    def report(self, rows: tuple[BadRow, ...]) -> None:
        """Show the first bad rows of the run and count the others."""
        with self._lock:
            shown = rows[: max(0, MOST_SHOWN - self._bad)]
            self._bad += len(rows)
            clear = "\r\x1b[K" if self._terminal and shown else ""
            self._write(
                clear + "".join(f"embedserve: line {r.line}: {r.code}: {_said(r)}\n" for r in shown)
            )

    def _show_all(self) -> None:
        while not self._ended.wait(REDRAW if self._terminal else WRITE):
            with self._lock:
                self._show()

    def _show(self) -> None:
        text = line(self._state(), self._first, self._clock() - self._began)
        if self._terminal:
            width = shutil.get_terminal_size().columns
            self._write(f"\r{text[: width - 1]}\x1b[K")
        else:
            self._write(f"embedserve: {text}\n")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:  # nobody reads it: the job goes on
            self._ended.set()


def _said(row: BadRow) -> str:
    return escaped(shortened(row.message, MOST_CHARACTERS))


def line(state: State, first: float, seconds: float) -> str:
    """The share done, the speed and the time left. This run began at `first`, `seconds` ago.

    >>> line(State(50, 100, 1000, 30_000), 0, 10.0)
    ' 50.0 %  1,000 texts  100 texts/s  3,000 tokens/s  0:00:10 left'
    """
    place, end, texts, tokens = state
    done = place / end if end else 1.0
    shown = f"{texts:,} texts  {texts / seconds:,.0f} texts/s  {tokens / seconds:,.0f} tokens/s"
    left = "-:--:--"
    if place > first:
        left = clock_time(seconds * (end - place) / (place - first))
    return f"{done:6.1%}  {shown}  {left} left".replace("%", " %")


def clock_time(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock_time(3725.4)
    '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
