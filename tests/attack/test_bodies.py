"""Bodies that cost more than they weigh: memory within the printed bound, others are served."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from embedserve.http.memory_budget import PROGRESS_SECONDS
from tests.attack.forms import LIVEZ
from tests.attack.watch import asking, longest
from tests.conftest import MINILM, ROOT
from tests.faults import watched
from tests.faults.serving import Served, serving, until

SIZE = 31 << 20
MB = 1_000_000
HEAD = (
    b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)
EMBEDDINGS, TOKENIZE = b"/v1/embeddings", b"/v1/tokenize"


class Form(NamedTuple):
    """A body of `size` bytes: `start`, `piece` again and again, `end`."""

    piece: bytes
    start: bytes = b'{"input":['
    end: bytes = b"0]}"
    size: int = SIZE

    def body(self) -> bytes:
        """All of it."""
        room = self.size - len(self.start) - len(self.end)
        return self.start + self.piece * (room // len(self.piece)) + self.end


def texts(one: str, count: int) -> Form:
    """So many of one text."""
    piece = f'"{one}",'.encode()
    return Form(piece, end=b'"a"]}', size=len(piece) * count + 20)


FORMS: dict[str, Form] = {
    "arrays": Form(b"[],"),
    "objects": Form(b'{"":0},'),
    "integers": Form(b"0,"),
    "wide integers": Form(b"18446744073709551615,"),
    "floats": Form(b"1.5,"),
    "empty texts": Form(b'"",'),
    "short texts": Form(b'"ab",'),
    "arrays of an integer": Form(b"[999],"),
    "nesting": Form(b"[", end=b""),
    "keys": Form(b'"k":0,', b"{", b'"input":"a"}'),
    "the same key": Form(b'"input":["a"],', b"{", b'"input":"a"}'),
    "one long key": Form(b"k", b'{"', b'":0}'),
    "white space": Form(b" "),
    "one number": Form(b"1"),
    "one text": Form(b"a", b'{"input":"', b'"}'),
    "escaped quotes": Form(b'\\"', b'{"input":"', b'"}'),
    "escaped characters": Form(b"\\ud83d\\ude00", b'{"input":"', b'"}'),
    "invalid UTF-8": Form(b"\xff", b'{"input":"', b'"}'),
    "no JSON": Form(b'",[{'),
    "small objects": Form(b'{"":0},', size=16_000),
    "one emoji a text": texts("\U0001f600" + "a" * 15_800, 2047),
    "one emoji, escaped": texts("\\ud83d\\ude00" + "a" * 15_800, 2047),
    "one CJK character a text": texts("\u4e2d" + "a" * 15_800, 2047),
}
QUICK = ("arrays", "objects", "integers", "one emoji a text", "small objects")


@pytest.fixture(scope="module", name="server")
def fixture_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The real model, for as many connections as attack."""
    flags = ("--model", MINILM, "--max-connections", "500")
    log = tmp_path_factory.mktemp("bodies") / "log"
    with serving(ROOT / "artifacts", log, *flags, "--no-access-log") as server:
        yield server


@pytest.mark.parametrize("name", QUICK)
def test_memory_stays_within_the_bound(server: Served, name: str) -> None:
    """Whatever a body is made of, from many connections; /livez within a second beside others."""
    check(server, name, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_others_are_answered(server: Served, name: str) -> None:
    """The same, in every form, and /livez within a quarter of a second."""
    check(server, name, 0.25)


def check(server: Served, name: str, seconds: float) -> None:
    """Attack from 40 connections; another client's /livez takes at most so many seconds."""
    peak, longest = attacked(server, name, 40, 4.0)
    most = watched.bound(server.log)
    print(f"{name}: {peak / MB:.0f} of {most / MB:.0f} MB, livez {longest * 1e3:.0f} ms")
    assert peak <= most
    assert longest <= seconds


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arrays", "one emoji a text", "small objects", "one text"])
def test_from_300_connections(server: Served, name: str) -> None:
    """The same from 300, and what was taken is given back: within 30 MB after 10 s."""
    before = watched.resident(server.process.pid)
    peak, longest = attacked(server, name, 300, 6.0)
    end = time.monotonic() + 10
    while (after := watched.resident(server.process.pid)) > before and time.monotonic() < end:
        time.sleep(0.1)
    print(
        f"{name} x 300: {before / MB:.0f}, {peak / MB:.0f}, {after / MB:.0f} of "
        f"{watched.bound(server.log) / MB:.0f} MB, livez {longest * 1e3:.0f} ms"
    )
    assert peak <= watched.bound(server.log)
    assert after <= before + 30 * MB
    assert longest <= 0.25


@pytest.mark.parametrize(
    ("form", "code"),
    [
        pytest.param(FORMS["arrays"], "too_many_inputs", id="arrays"),
        pytest.param(FORMS["objects"], "invalid_type", id="objects"),
        pytest.param(FORMS["keys"], "too_many_inputs", id="keys"),
    ],
)
@pytest.mark.parametrize("path", [EMBEDDINGS, TOKENIZE])
def test_refused_before_it_is_whole(server: Served, path: bytes, form: Form, code: str) -> None:
    """400 after the first pieces: nobody has to send the rest."""
    with server.connect() as connection:
        connection.sendall(HEAD % (path, SIZE) + form.body()[:400_000])
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"%b"' % code.encode() in answer


def test_wide_texts_are_answered(server: Served) -> None:
    """What is legitimate stays so: many characters of four bytes, every character escaped."""
    wide = ["\U0001f600" * 300] * 300
    plain = server.embed(model=MINILM, input=wide[:1])
    found = server.embed(model=MINILM, input=wide)
    assert found.status_code == 200
    assert found.json()["data"][299]["embedding"] == plain.json()["data"][0]["embedding"]


class TestStalled:
    """Bodies that hold most of max_pending_mb and bring nothing."""

    @pytest.mark.parametrize("trickles", [False, True], ids=["silent", "a byte a second"])
    def test_others_are_served(self, server: Served, trickles: bool) -> None:
        """Four connections with 85 MB of bodies: 20 texts are answered within a second or so."""
        held = server.metric
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                connection = stack.enter_context(server.connect())
                begin(connection, 21 * MB)
            until(lambda: held("embedserve_pending_bytes") > 180 * MB)
            start = time.monotonic()
            while trickles and time.monotonic() < start + 2:
                time.sleep(0.2)
                connection.send(b"a")
            start = time.monotonic()
            answer = server.embed(model=MINILM, input=[f"text {i}" for i in range(20)])
            assert answer.status_code == 200
            assert time.monotonic() - start <= 1.5
            print(f"20 texts in {time.monotonic() - start:.2f} s")

    def test_the_largest_is_given_up(self, server: Served) -> None:
        """408 that says why, once another large request finds no room; that one is answered."""
        with contextlib.ExitStack() as stack:
            stalled = [stack.enter_context(server.connect()) for _ in range(3)]
            # Three bytes are held for each, of 224 MB for requests that are not small.
            for connection, size in zip(stalled, (20.0, 29.0, 25.4), strict=True):
                begin(connection, int(size * MB))
            until(lambda: server.metric("embedserve_pending_bytes") > 223 * MB)
            all_stalled = time.monotonic() + PROGRESS_SECONDS
            until(lambda: time.monotonic() > all_stalled)
            honest = {"model": MINILM, "input": ["a " * 30_000] * 8}
            answers: list[int] = []

            def is_answered() -> bool:
                answers.append(server.embed({"X-Request-Timeout": "30"}, **honest).status_code)
                return answers[-1] == 200

            until(is_answered)
            answer = received(stalled[1])
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"another request needed the memory" in answer
            assert set(answers) <= {200, 429}


def begin(connection: socket.socket, size: int) -> None:
    """Send so many bytes of a larger body of one text."""
    connection.sendall(HEAD % (EMBEDDINGS, SIZE) + b'{"input":"' + b"a" * size)


def received(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            answer += part
    return answer


def attacked(server: Served, name: str, connections: int, seconds: float) -> tuple[int, float]:
    """Bytes of memory at the most while a form is sent, and the longest wait for /livez."""
    pid = server.process.pid
    watched.forget_peak(pid)
    spawned = multiprocessing.get_context("spawn")
    work = (server.address[1], name, connections, seconds)
    process = spawned.Process(target=_send_all, args=work)
    failures: list[str] = []
    with asking(server.address[1], LIVEZ, 0.02, failures) as waits:
        process.start()
        process.join()
    assert process.exitcode == 0
    assert not failures
    return watched.peak(pid), longest(waits)


def _send_all(port: int, name: str, connections: int, seconds: float) -> None:
    """In a process of its own: each connection sends the body again and again."""
    body = FORMS[name].body()
    request = HEAD % (EMBEDDINGS, len(body)) + body

    os.nice(10)  # real attackers are on other machines

    async def send(end: Callable[[], bool]) -> None:
        while not end():
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                for start in range(0, len(request), 262_144):
                    writer.write(request[start : start + 262_144])
                    await writer.drain()
                    if end():
                        break
                else:
                    await reader.read(65_536)
                writer.close()

    async def main() -> None:
        until_then = time.monotonic() + seconds

        def end() -> bool:
            return time.monotonic() > until_then

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds + 5):
                await asyncio.gather(*(send(end) for _ in range(connections)))

    asyncio.run(main())
