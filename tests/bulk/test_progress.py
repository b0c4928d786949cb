"""What is said on standard error while a job runs."""

from __future__ import annotations

import doctest
import io
import threading

import pytest

from embedserve.bulk import progress
from embedserve.bulk.chunks import BadRow
from embedserve.bulk.progress import Progress, State


class Stream(io.StringIO):
    """A terminal, or none, that says when something was written to it."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal
        self.written = threading.Event()

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        count = super().write(text)
        self.written.set()
        return count


def test_examples() -> None:
    assert doctest.testmod(progress).failed == 0


def test_time_left() -> None:
    """By what this run did: what an earlier one did took no time of it."""
    text = progress.line(State(0.75, 1.0, 100, 1000), 0.5, 10.0)
    assert text.endswith("10 texts/s  100 tokens/s  0:00:10 left")
    assert progress.line(State(0.0, 1.0, 0, 0), 0.0, 1.0).endswith("-:--:-- left")


@pytest.mark.parametrize("terminal", [True, False])
def test_shown(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal's line is drawn over itself and gone at the end; a log gets whole lines."""
    monkeypatch.setattr(progress, "REDRAW", 0.01)
    monkeypatch.setattr(progress, "WRITE", 0.01)
    stream = Stream(terminal)
    with Progress(lambda: State(1, 2, 3, 4), stream):
        assert stream.written.wait(10)
    shown = stream.getvalue()
    assert "50.0 %" in shown
    assert ("\r" in shown) == terminal
    assert shown.endswith("\r\x1b[K" if terminal else "left\n")


def test_bad_rows() -> None:
    """The first are shown, the others counted."""
    stream = Stream(terminal=False)
    with Progress(lambda: State(0, 1, 0, 0), stream) as shown:
        for line in range(1, 31):
            shown.report((BadRow(line, "invalid_json", "no JSON"),))
        shown.report(())
    lines = stream.getvalue().splitlines()
    assert lines[0] == "embedserve: line 1: invalid_json: no JSON"
    assert lines[20:] == ["embedserve: 10 more bad rows"]


def test_nobody_reads() -> None:
    """A closed pipe does not end the job."""

    class Closed(Stream):
        def write(self, text: str) -> int:
            tried.append(text)
            raise BrokenPipeError

    tried: list[str] = []
    with Progress(lambda: State(0, 1, 0, 0), Closed(terminal=False)) as shown:
        for line in (1, 2):
            shown.report((BadRow(line, "invalid_json", "no JSON"),))
    assert ["line 1" in text or "line 2" in text for text in tried] == [True, True]
