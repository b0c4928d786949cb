"""What a host does to a process: no descriptors, a stop, clocks that jump, logs that cannot go."""

from __future__ import annotations

import ast
import base64
import contextlib
import itertools
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import httpx
import numpy as np
import pytest

from embedserve import logs
from tests import tiny, tree
from tests.conftest import MINILM
from tests.faults import altered, on_full_disk
from tests.faults.serving import (
    ROOT,
    SECONDS,
    Served,
    command,
    environment,
    free_port,
    kill,
    serving,
    until,
)

EMBED: Mapping[str, Any] = {"model": "tiny", "input": "a b", "encoding_format": "base64"}

LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
POST = (
    b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n"
)


def good(answer: httpx.Response) -> bool:
    """Whether it is the answer to EMBED, vector included."""
    if answer.status_code != 200:
        return False
    row = np.frombuffer(base64.b64decode(answer.json()["data"][0]["embedding"]), "<f4")
    return bool(np.allclose(row, tiny.expected("a b"), atol=1e-7))


class TestDescriptors:
    """More connections than the process may have descriptors."""

    def test_none_left(self, tiny_artifacts: Path, tmp_path: Path) -> None:
        """Without a free descriptor: open connections are served, nothing spins, nothing floods
        the log; once some close, new ones are served again.
        """
        with serving(tiny_artifacts, tmp_path / "log") as server, server.client() as known:
            assert good(known.post("/v1/embeddings", json=EMBED))
            self._limit(server, more=16)
            others = [server.connect() for _ in range(64)]
            until(lambda: self._open(server) == self._limit(server))
            lines = server.log.read_text().count("\n")
            before = server.processor_seconds()
            end = time.monotonic() + 2.0
            refused = 0
            while time.monotonic() < end:  # who comes meanwhile is turned away, not kept waiting
                with server.connect() as one:
                    refused += one.recv(1) == b""
                time.sleep(0.05)
            assert refused >= 10
            assert server.processor_seconds() - before < 0.5
            assert server.log.read_text().count("\n") - lines <= logs.BURST
            assert good(known.post("/v1/embeddings", json=EMBED))
            for one in others:
                one.close()
            until(lambda: self._open(server) < self._limit(server))
            assert good(server.embed(**EMBED))
            assert good(known.post("/v1/embeddings", json=EMBED))
            assert server.stop() == 0

    def _open(self, server: Served) -> int:
        return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))

    def _limit(self, server: Served, more: int | None = None) -> int:
        """The most descriptors it may have; with `more`, set to what it has and so many."""
        limits = () if more is None else ((self._open(server) + more,) * 2,)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, *limits)
        return resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)[0]


def test_many_connect_while_models_load(tmp_path: Path) -> None:
    """Who connects from the first moment on waits for the models, and not for a second try of a
    handshake that was dropped.
    """
    port = free_port()
    with (tmp_path / "log").open("wb") as stderr:
        words = command(ROOT / "artifacts", "--model", MINILM, "--port", str(port))
        process = subprocess.Popen(words, stderr=stderr, env=environment(), cwd=ROOT)
    server = Served(process, f"http://127.0.0.1:{port}", tmp_path / "log")
    try:
        until(lambda: listens(server))
        with contextlib.ExitStack() as open_ones:
            waiting = []
            for _ in range(20):
                one = socket.create_connection(server.address, timeout=0.9)
                waiting.append(open_ones.enter_context(one))
                one.settimeout(SECONDS)
                one.sendall(LIVE)
            assert all(one.recv(1000).startswith(b"HTTP/1.1 200") for one in waiting)
        assert server.stop() == 0
    finally:
        kill(process)


class Callers:
    """Clients that ask again and again on connections of their own."""

    def __init__(self, server: Served, count: int) -> None:
        self.answers = [0] * count
        self._end = threading.Event()
        self._pool = ThreadPoolExecutor(count)
        self._all = [self._pool.submit(self._ask, server, i) for i in range(count)]

    def end(self) -> None:
        """Every answer was right, or this raises what went wrong."""
        self._end.set()
        for one in self._all:
            one.result(SECONDS)
        self._pool.shutdown()

    def until_each_has(self, more: int) -> None:
        """Wait until each has got so many more answers."""
        before = list(self.answers)
        until(lambda: all(n >= b + more for n, b in zip(self.answers, before, strict=True)))

    def _ask(self, server: Served, which: int) -> None:
        with server.client() as client:
            while not self._end.is_set():
                assert good(client.post("/v1/embeddings", json=EMBED))
                self.answers[which] += 1


@contextlib.contextmanager
def stopped(server: Served, seconds: float) -> Iterator[None]:
    """Stop the process; it goes on after `seconds` and what is done meanwhile."""
    server.process.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    yield
    time.sleep(max(0.0, start + seconds - time.monotonic()))
    server.process.send_signal(signal.SIGCONT)


class TestStopped:
    """The process is stopped (SIGSTOP, a paused container, a host that swaps) and goes on."""

    def test_clients_wait_and_lose_nothing(self, tiny_artifacts: Path, tmp_path: Path) -> None:
        """Every keep-alive client gets every answer, also one that connects meanwhile."""
        with serving(tiny_artifacts, tmp_path / "log") as server, ThreadPoolExecutor(1) as pool:
            callers = Callers(server, 8)
            callers.until_each_has(5)
            with stopped(server, 1.0):
                late = pool.submit(server.embed, **EMBED)
            assert good(late.result(SECONDS))
            callers.until_each_has(5)
            callers.end()
            assert "Traceback" not in server.log.read_text()
            assert server.stop() == 0

    def test_who_was_reset_meanwhile_is_not_served(
        self, tiny_artifacts: Path, tmp_path: Path
    ) -> None:
        """A connection that is reset before it is accepted costs nothing, whatever it has sent."""
        body = json.dumps(EMBED).encode()
        reset = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close sends a reset
        with serving(tiny_artifacts, tmp_path / "log") as server:
            with stopped(server, 0.0):
                for _ in range(100):
                    with socket.create_connection(server.address) as connection:
                        connection.sendall(POST % len(body) + body)
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            assert good(server.embed(**EMBED))
            assert server.metric('embedserve_requests_total{model="tiny",outcome="ok"}') == 1
            assert server.metric('embedserve_requests_total{model="tiny",outcome="cancelled"}') == 0
            assert server.stop() == 0

    def test_deadlines_go_on(self, tiny_artifacts: Path, tmp_path: Path) -> None:
        """A request whose deadline passed meanwhile gets 504, another its answer."""
        runner = ("tests.faults.altered", "gate")
        with (
            serving(tiny_artifacts, tmp_path / "log", "--lanes", "1", runner=runner) as server,
            ThreadPoolExecutor(2) as pool,
        ):
            server.hold_passes()
            hasty = pool.submit(server.embed, {"x-request-timeout": "1"}, **EMBED)
            patient = pool.submit(server.embed, **EMBED)
            until(lambda: server.metric('embedserve_requests_in_flight{model="tiny"}') == 2)
            with stopped(server, 1.1):
                pass
            answer = hasty.result(SECONDS)
            assert (answer.status_code, answer.json()["error"]["code"]) == (
                504,
                "deadline_exceeded",
            )
            server.release_passes()
            assert good(patient.result(SECONDS))
            assert server.stop() == 0

    @pytest.mark.slow
    def test_what_came_meanwhile_is_not_late(self, tiny_artifacts: Path, tmp_path: Path) -> None:
        """Time in which the server did not look is held against nobody: not against a first
        request or the rest of one that came meanwhile, nor against who read of a big answer.
        """
        runner = ("tests.faults.altered", "hasty")
        many = json.dumps({"model": "tiny", "input": ["a b"] * 100_000}).encode()
        flags = ("--max-inputs", "100000")
        with (
            serving(tiny_artifacts, tmp_path / "log", *flags, runner=runner) as server,
            server.connect() as reader,
        ):
            reader.sendall(POST % len(many) + many)
            received = reader.recv(1)  # the kernel's buffers do not take an answer of 10 MB
            with server.connect() as silent, server.connect() as begun:
                begun.sendall(LIVE[:10])
                assert server.metric('embedserve_requests_in_flight{model="tiny"}') == 1
                with stopped(server, 1.5 * altered.HASTE):
                    silent.sendall(LIVE)
                    begun.sendall(LIVE[10:])
                    received += all_there_is(reader)
                for one in (silent, begun):
                    assert one.recv(1000).startswith(b"HTTP/1.1 200")
            head, _, start = received.partition(b"\r\n\r\n")
            left = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]) - len(start)
            while left:
                part = reader.recv(1_000_000)
                assert part, f"cut off {left} bytes before the end"
                left -= len(part)
            assert server.stop() == 0


def all_there_is(connection: socket.socket) -> bytes:
    """What the kernel has for it."""
    connection.settimeout(0.2)
    parts = []
    with contextlib.suppress(TimeoutError):
        while part := connection.recv(1_000_000):
            parts.append(part)
    connection.settimeout(SECONDS)
    return b"".join(parts)


class TestWallClock:
    """The wall clock jumps by hours, both ways: the monotonic clock is what counts here."""

    def test_it_jumps(self, tiny_artifacts: Path, tmp_path: Path) -> None:
        """Requests in flight, deadlines, idle connections, admission and the log's limits go on."""
        runner = ("tests.faults.altered", "clock")
        with serving(tiny_artifacts, tmp_path / "log", runner=runner) as server:
            callers = Callers(server, 4)
            with server.client() as idle, server.connect() as begun:
                assert good(idle.post("/v1/embeddings", json=EMBED))
                (connection,) = idle._transport._pool.connections  # type: ignore[attr-defined]
                begun.sendall(LIVE[:10])
                hours = [self._hour(idle)]
                for _ in altered.HOURS:
                    self._fail(server, 2 * logs.BURST)
                    server.process.send_signal(signal.SIGUSR1)
                    until(lambda: self._hour(idle) != hours[-1])
                    hours.append(self._hour(idle))
                    callers.until_each_has(10)
                    assert good(idle.post("/v1/embeddings", json=EMBED))
                    assert good(server.embed({"x-request-timeout": "10"}, **EMBED))
                    assert idle._transport._pool.connections == [connection]  # type: ignore[attr-defined]
                begun.sendall(LIVE[10:])
                assert begun.recv(1000).startswith(b"HTTP/1.1 200")
            callers.end()
            jumps = [(b - a) % 24 for a, b in itertools.pairwise(hours)]
            assert jumps == [jump % 24 for jump in altered.HOURS]
            assert server.stop() == 0
            text = server.log.read_text()
            assert text.count("a pass of one text failed") == logs.BURST
            assert "Traceback" not in text
            assert {line[11:13] for line in text.splitlines()} >= {f"{h:02}" for h in hours}

    def test_it_is_read_for_dates_alone(self) -> None:
        """What the service asks the wall clock for: `created`, and the times of log lines."""
        readers = {
            path.name: found
            for path in tree.modules().values()
            if (found := set(self._wall_clocks(ast.parse(path.read_text()))))
        }
        assert readers == {
            "endpoints.py": {"time.time"},
            "front.py": {"time.time"},
            "logs.py": {"time.gmtime", "time.time"},
        }

    def _hour(self, client: httpx.Client) -> int:
        """The hour of the Date header, which is made once a second."""
        return int(client.get("/livez").headers["date"][17:19])

    def _fail(self, server: Served, times: int) -> None:
        with server.client() as client:
            for _ in range(times):
                failed = client.post("/v1/embeddings", json={"model": "tiny", "input": "fail"})
                assert failed.json()["error"]["code"] == "inference_failed"

    def _wall_clocks(self, tree: ast.AST) -> Iterator[str]:
        clocks = ("time.time", "time.gmtime", "time.localtime", "datetime", "time.ctime")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute | ast.Import | ast.ImportFrom | ast.Name):
                text = ast.unparse(node)
                yield from (c for c in clocks if text == c or text.startswith(f"import {c}"))


class TestLogs:
    """Standard error takes no line: nobody who asks for vectors notices."""

    @pytest.mark.parametrize(
        "where", [pytest.param("/dev/full", marks=pytest.mark.slow), "a file system"]
    )
    def test_full_disk(self, tiny_artifacts: Path, tmp_path: Path, where: str) -> None:
        """No space for a single line: it starts, serves as always and ends with 0."""
        port = free_port()
        words = command(tiny_artifacts, "--port", str(port))
        if where == "a file system":
            words = [words[0], "-m", "tests.faults.on_full_disk", str(tmp_path), *words]
        with open("/dev/full", "wb") as full:  # noqa: PTH123  # a device
            process = subprocess.Popen(words, stderr=full, env=environment(), cwd=ROOT)
        try:
            server = Served(process, f"http://127.0.0.1:{port}", tmp_path / "none")
            until(lambda: process.poll() is not None or listens(server))
            if process.poll() == on_full_disk.UNABLE:
                pytest.skip("this host gives a process no file system of its own")
            callers = Callers(server, 4)
            callers.until_each_has(50)
            callers.end()
            assert server.embed(model="tiny", input="fail").status_code == 500
            assert server.stop() == 0
        finally:
            kill(process)

    @pytest.mark.parametrize(
        "reader", ["reads nothing", pytest.param("is gone", marks=pytest.mark.slow)]
    )
    def test_pipe(self, tiny_artifacts: Path, tmp_path: Path, reader: str) -> None:
        """A full pipe or a closed one, and more access lines than are kept: answers come as fast
        as with a file, and SIGTERM ends it with 0.
        """
        with (
            serving(tiny_artifacts, tmp_path / "log") as beside,
            piped(tiny_artifacts) as (server, pipe),
        ):
            if reader == "is gone":
                pipe.close()
            paces: tuple[list[float], list[float]] = ([], [])
            for _ in range(6):  # in turns, and the best of each: the host has other work, too
                for one, seconds in zip((server, beside), paces, strict=True):
                    seconds.append(self._ask(one, logs.MOST_WAITING // 5))
            assert min(paces[0]) < 1.5 * min(paces[1])
            assert good(server.embed(**EMBED))
            assert server.stop(logs.CLOSE_SECONDS + 5) == 0
            assert beside.stop() == 0

    def test_a_reader_that_comes_back(self, tiny_artifacts: Path) -> None:
        """Once somebody reads again, it is said how many lines were lost, and lines go on."""
        with piped(tiny_artifacts) as (server, pipe):
            self._ask(server, 2 * logs.MOST_WAITING)
            seen: list[bytes] = []
            thread = threading.Thread(target=lambda: seen.extend(pipe))
            thread.start()
            until(lambda: any(b"were lost" in line for line in list(seen)))
            self._ask(server, 10)
            assert server.stop() == 0
            thread.join(SECONDS)
            said = [s.partition(b" log lines were lost") for s in seen if b"were lost" in s]
            lost = sum(int(before.rpartition(b" ")[2]) for before, _, _ in said)
            assert lost > 0
            assert lost + sum(b"path='/livez'" in s for s in seen) == 2 * logs.MOST_WAITING + 10
            assert any(b"draining" in line for line in seen)

    def _ask(self, server: Served, times: int) -> float:
        """GET /livez so many times, by tens; the seconds it took."""
        burst = LIVE * 10
        with server.connect() as connection:
            start = time.monotonic()
            for _ in range(0, times, 10):
                connection.sendall(burst)
                data = b""
                while data.count(b'{"status":"ok"}') < 10:
                    part = connection.recv(65_536)
                    assert part, data
                    data += part
            return time.monotonic() - start


def listens(server: Served) -> bool:
    """Whether it takes connections."""
    with contextlib.suppress(OSError):
        server.connect().close()
        return True
    return False


@contextlib.contextmanager
def piped(artifacts: Path) -> Iterator[tuple[Served, IO[bytes]]]:
    """A server whose log goes into a pipe that is read up to where it serves."""
    words = command(artifacts, "--port", "0")
    process = subprocess.Popen(words, stderr=subprocess.PIPE, env=environment(), cwd=ROOT)
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if b"serving " in line).decode()
        yield Served(process, line.split(" on ")[1].split()[0], Path(os.devnull)), process.stderr
    finally:
        kill(process)
        process.stderr.close()
