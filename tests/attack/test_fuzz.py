"""Drawn HTTP and JSON against a real server; and the strictness with which answers are read."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from pathlib import Path

import pytest

from tests.attack.answers import Answer, MalformedError, answers
from tests.attack.fuzz import fuzz
from tests.attack.mutate import CORPUS, corpus
from tests.attack.pauses import Span, found, watching
from tests.attack.watch import longest

ERROR = b'{"error":{"message":"m","type":"invalid_request_error","param":null,"code":"%b"}}'


def answer(status: bytes, body: bytes, more: bytes = b"") -> bytes:
    length = b"content-length: %d\r\n" % len(body)
    kind = b"content-type: application/json\r\n"
    return b"HTTP/1.1 %b\r\n%b%b%b\r\n%b" % (status, kind, length, more, body)


OK = answer(b"200 OK", b"{}")


def test_a_server_bears_drawn_requests(tmp_path: Path) -> None:
    """5 s of drawn HTTP and JSON, with a key and without, leave the server as it was.

    It does not end; its log has no traceback; every answer is well-formed, and none is a 5xx that a
    client caused; memory stays within the printed bound, another client's /livez within a second,
    beside other work (a quarter in the long runs).
    """
    line, failures = fuzz(5, "1", tmp_path, livez=1.0)
    print(line)
    assert not failures, (line, failures)


@pytest.mark.slow
def test_for_minutes(tmp_path: Path) -> None:
    """The same for five minutes."""
    line, failures = fuzz(300, "2", tmp_path)
    print(line)
    assert not failures, (line, failures)


def test_the_corpus() -> None:
    """Bodies and raw requests, each of at most 2 KB."""
    entries = corpus(CORPUS)
    assert len(entries) >= 30
    assert {entry.is_body for entry in entries} == {True, False}
    assert max(len(entry.data) for entry in entries) <= 2_048


def test_answers_are_read() -> None:
    """Answers one after the other: sized, in chunks, without a body; and one that is not whole."""
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    data = OK + b"HTTP/1.1 100 Continue\r\n\r\n" + chunked + OK[:-1]
    found, rest = answers(data, has_head=False)
    assert found == [Answer(200, ""), Answer(100, ""), Answer(200, "")]
    assert rest == OK[:-1]
    refused = answer(b"400 Bad Request", ERROR % b"invalid_http")
    assert answers(refused, has_head=False) == ([Answer(400, "invalid_http m")], b"")
    assert answers(OK[:-2] + OK, has_head=True)[0] == [Answer(200, "HEAD"), Answer(200, "")]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        answer(b"500 Internal Server Error", ERROR % b"internal_error"),
        answer(b"502 Bad Gateway", ERROR % b"internal_error"),
        answer(b"400 Bad Request", b"no JSON"),
        answer(b"400 Bad Request", ERROR % b"no_such_code"),
        answer(b"413 Too Large", ERROR % b"invalid_http"),
        answer(b"200 OK", b"{}", b"content-length: 2\r\n"),
        answer(b"200 OK", b"{}", b"transfer-encoding: chunked\r\n"),
        answer(b"200 OK", b"{}", b"a: \x1b[31m\r\n"),
        OK + b"{}" + OK,
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}}}0\r\n\r\n",
    ],
)
def test_malformed_answers_are_found(data: bytes) -> None:
    """Each kind of answer that the server must not give."""
    with pytest.raises(MalformedError):
        answers(data, has_head=False)


def test_a_pause_of_the_machine_is_no_wait() -> None:
    """What lies in a pause is taken out of a wait, and nothing else."""
    waits = [Span(1.0, 1.5), Span(2.0, 2.2)]
    assert longest(waits) == 0.5
    assert longest(waits, [Span(0.5, 1.1), Span(1.2, 1.4), Span(3.0, 9.0)]) == pytest.approx(0.2)
    assert longest(waits, [Span(2.0, 2.1)]) == 0.5
    assert longest([]) == 0.0


def test_pauses_are_seen(tmp_path: Path) -> None:
    """A clock that is stopped for a while says from when to when."""
    file = tmp_path / "pauses"
    with watching(file) as clock:
        while longest(found(file)) < 0.1:
            for order in (signal.SIGSTOP, signal.SIGCONT):
                clock.send_signal(order)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    clock.wait(0.2)
    assert longest(found(file)) < 5
    file.write_text("1.0 1.5\n2.0")
    assert found(file) == [Span(1.0, 1.5)]
