"""Log lines: nobody waits for their reader, a flood is cut, and what is lost is counted."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator

import pytest

from embedserve import logs
from embedserve.logs import BURST, WINDOW, JsonFormatter, Limit, Lines, TextFormatter


def record(
    message: str = "a pass failed: %s",
    name: str = "embedserve.engine.scheduler",
    *arguments: object,
) -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, "", 0, message, arguments or ("x",), None)


class Pipe:
    """Both ends of a pipe; a test may close either."""

    def __init__(self) -> None:
        reader, writer = os.pipe()
        self.reader, self.writer = os.fdopen(reader, "rb", 0), os.fdopen(writer, "wb", 0)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    ends = Pipe()
    yield ends
    ends.reader.close()
    ends.writer.close()


def lines(descriptor: int, formatter: logging.Formatter | None = None) -> Lines:
    handler = Lines(descriptor)
    handler.setFormatter(formatter or TextFormatter())
    return handler


class TestLines:
    """A thread writes them."""

    def test_each_is_one_line(self, pipe: Pipe) -> None:
        """Whatever stands in a message, in the order they came."""
        handler = lines(pipe.writer.fileno())
        for text in ("one\ntwo", "three \ud800 four"):
            handler.handle(record("%s", "x", text))
        handler.close()
        written = (pipe.reader.read(65536) or b"").decode()
        assert written.count("\n") == 2
        assert written.index("one\\ntwo") < written.index("three \\ud800 four")

    def test_json(self, pipe: Pipe) -> None:
        """One object a line, what is not JSON escaped."""
        handler = lines(pipe.writer.fileno(), JsonFormatter())
        handler.handle(record("%s", "x", 'a "quote"\n'))
        handler.close()
        entry = json.loads(pipe.reader.read(65536) or b"")
        assert entry["message"] == 'a "quote"\n'
        assert entry["level"] == "error"

    def test_a_full_pipe_keeps_nobody_waiting(self, pipe: Pipe) -> None:
        """More lines than fit: the sender goes on; once they are read, the loss is said."""
        handler = lines(pipe.writer.fileno())
        for i in range(logs.MOST_WAITING + 2000):  # the pipe takes a few hundred
            handler.handle(record("%s %s", "x", i, "." * 200))
        read: list[bytes] = []

        def reader() -> None:
            while data := (pipe.reader.read(65536) or b""):
                read.append(data)

        thread = threading.Thread(target=reader)
        thread.start()
        while b"were lost" not in b"".join(read[-2:]):
            handler.handle(record("%s", "x", "one more"))
        handler.close()
        pipe.writer.close()
        thread.join()
        text = b"".join(read).decode()
        assert " 0 ..." in text  # the first ones are there
        assert int(text.split(" log lines were lost")[0].rpartition(" ")[2]) >= 1

    def test_a_closed_pipe_disturbs_nobody(self, pipe: Pipe) -> None:
        """Its reader is gone: nothing is raised, and it ends as always."""
        before = set(threading.enumerate())
        handler = lines(pipe.writer.fileno())
        (own,) = set(threading.enumerate()) - before
        pipe.reader.close()
        for _ in range(10):
            handler.handle(record())
        handler.close()
        assert not own.is_alive()

    def test_a_record_that_cannot_be_formatted(self, pipe: Pipe) -> None:
        """A wrong call is one lost line; the next is written."""
        handler = lines(pipe.writer.fileno())
        handler.handle(record("%d", "x", "no number"))
        handler.handle(record("fine %s"))
        handler.close()
        assert b"fine x" in (pipe.reader.read(65536) or b"")


class TestLimit:
    """At most BURST lines of a kind in WINDOW seconds."""

    def test_a_flood_is_cut_and_counted(self) -> None:
        """The same message with other arguments is the same kind; then it is said how many."""
        now = 0.0
        limit = Limit(lambda: now)
        passed = [limit.filter(record("failed: %s", "x", i)) for i in range(BURST + 30)]
        assert passed == [True] * BURST + [False] * 30
        now = WINDOW
        later = record("failed: %s", "x", 1)
        assert limit.filter(later)
        assert later.getMessage() == "failed: 1 (30 similar lines before this one were left out)"

    def test_other_kinds_pass(self) -> None:
        """Another message, another logger; access lines always."""
        limit = Limit(lambda: 0.0)
        for _ in range(BURST + 1):
            limit.filter(record())
        assert not limit.filter(record())
        assert limit.filter(record("another %s"))
        assert limit.filter(record(name="embedserve.api.app"))
        assert all(limit.filter(record(name=logs.ACCESS)) for _ in range(3 * BURST))

    def test_kinds_are_bounded(self) -> None:
        """A library that puts what changes into its messages does not fill memory."""
        limit = Limit(lambda: 0.0)
        for i in range(3 * logs.MOST_KINDS):
            assert limit.filter(record(f"kind {i} %s"))
        assert len(limit._kinds) <= logs.MOST_KINDS
