"""A load generator of few instructions: raw connections, pre-built requests, keep-alive.

Closed loops (each client sends when its answer has come) and an open one (requests come when they
come). For one short text at full speed there is wrk (wrk.py), which is cheaper still. As a program,
one client: python -m tests.bench.load PORT SECONDS FILE-OF-BODIES FIRST
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Run:
    """What a run gave: requests and texts per second, and each request's seconds."""

    rate: float
    texts: float
    latencies: list[float]


@dataclass(frozen=True, slots=True)
class Request:
    """A POST as bytes, and how many texts it asks for."""

    sent: bytes
    texts: int


def request(body: bytes, headers: str = "", path: str = "/v1/embeddings") -> bytes:
    """A POST as bytes."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """One connection: one request at a time, its answer counted and not kept."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0
        self._answer: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, port: int) -> Connection:
        """Connect to a port of this host."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, "127.0.0.1", port)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def send(self, sent: bytes) -> None:
        """Send a request and wait for its answer, which must be 200."""
        assert self._transport is not None and not self._transport.is_closing()
        self._answer = asyncio.get_running_loop().create_future()
        self._head, self._left = b"", 0
        self._transport.write(sent)
        await self._answer

    def data_received(self, data: bytes) -> None:
        if self._left:
            self._left -= len(data)
        else:
            self._head += data
            end = self._head.find(HEAD_END)
            if end < 0:
                return
            head = self._head[:end].lower() + b"\r\n"
            if not head.startswith(b"http/1.1 200"):
                self._end(AssertionError(self._head.decode(errors="replace")[:500]))
                return
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            self._left = end + len(HEAD_END) + length - len(self._head)
        if self._left == 0:
            self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error or ConnectionResetError("the server closed the connection"))

    def _end(self, error: Exception | None) -> None:
        if self._answer is None or self._answer.done():
            return
        if error is None:
            self._answer.set_result(None)
        else:
            self._answer.set_exception(error)

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()


async def drive(port: int, sent: bytes, clients: int, count: int) -> None:
    """Send one request `count` times over `clients` connections."""
    left = iter(range(count))

    async def client() -> None:
        with closing(await Connection.open(port)) as connection:
            for _ in left:
                await connection.send(sent)

    await asyncio.gather(*(client() for _ in range(clients)))


async def closed(port: int, requests: Iterator[Request], clients: int, until: asyncio.Event) -> Run:
    """Send requests until told, and wait for the answers: a client counts for as long as it ran."""
    latencies: list[float] = []

    async def client() -> tuple[float, float]:
        start, done, texts = time.perf_counter(), 0, 0
        with closing(await Connection.open(port)) as connection:
            while not until.is_set():
                work, begin = next(requests), time.perf_counter()
                await connection.send(work.sent)
                latencies.append(time.perf_counter() - begin)
                done, texts = done + 1, texts + work.texts
        seconds = time.perf_counter() - start
        return done / seconds, texts / seconds

    rates = await asyncio.gather(*(client() for _ in range(clients)))
    return Run(sum(r for r, _ in rates), sum(t for _, t in rates), latencies)


async def for_seconds(port: int, requests: Iterator[Request], clients: int, seconds: float) -> Run:
    """A closed loop of so many seconds."""
    until = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, until.set)
    return await closed(port, requests, clients, until)


async def open_loop(port: int, requests: Iterator[Request], rate: float, seconds: float) -> Run:
    """Send at random times, `rate` a second in the mean; latency counts from when it was due."""
    draw = random.Random(4)  # noqa: S311  # the same gaps every time
    latencies: list[float] = []

    async def send(work: Request, due: float) -> None:
        connection = idle.pop() if idle else opened.enter_context(await connect())
        await connection.send(work.sent)
        latencies.append(time.perf_counter() - due)
        idle.append(connection)

    async def connect() -> closing[Connection]:
        return closing(await Connection.open(port))

    with ExitStack() as opened:
        idle = [opened.enter_context(await connect()) for _ in range(32)]
        start = due = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            while (due := due + draw.expovariate(rate)) < start + seconds:
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                group.create_task(send(next(requests), due))
        reached = len(latencies) / (time.perf_counter() - start)
    return Run(reached, reached, latencies)


def endless(requests: list[Request], start: int = 0) -> Iterator[Request]:
    """The requests in turn, again and again, from number `start`."""
    return itertools.islice(itertools.cycle(requests), start % len(requests), None)


def main(port: str, seconds: str, bodies: str, first: str) -> None:
    """One client in a process of its own, so that other answers do not delay its clock."""
    sent = [Request(request(line), 1) for line in Path(bodies).read_bytes().splitlines()]
    run = asyncio.run(for_seconds(int(port), endless(sent, int(first)), 1, float(seconds)))
    print(json.dumps(run.latencies))


if __name__ == "__main__":
    main(*sys.argv[1:])
