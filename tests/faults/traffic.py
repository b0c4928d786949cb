"""Clients of a server under fire: raw sockets, so that what is sent and lost is known exactly."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

HOST = "127.0.0.1"


def post(body: object, **headers: str) -> bytes:
    """POST embeddings as bytes."""
    content = json.dumps(body).encode()
    fields = {"host": "x", "content-type": "application/json", **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    start = f"POST /v1/embeddings HTTP/1.1\r\n{head}content-length: {len(content)}\r\n\r\n"
    return start.encode() + content


def get(path: str) -> bytes:
    """GET as bytes."""
    return f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    head: bytes
    body: bytes

    @property
    def closes(self) -> bool:
        """Whether it is the connection's last."""
        return b"connection: close" in self.head.lower()

    def header(self, name: str) -> str | None:
        """A header field's value."""
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            key, _, value = line.partition(": ")
            if key.lower() == name:
                return value
        return None


class Connection:
    """One connection; `ask` sends a request and reads its answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.open = True

    def send(self, request: bytes) -> None:
        """Send a request and do not wait for anything."""
        self._writer.write(request)

    async def ask(self, request: bytes) -> Answer:
        """OSError or EOFError when the answer is lost."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        answer = Answer(int(head.split(b" ")[1]), head, await self._reader.readexactly(length))
        if answer.closes:
            self.close()
        return answer

    def close(self) -> None:
        """Close it."""
        self.open = False
        self._writer.close()


async def connect(port: int) -> Connection:
    """Open a connection; OSError when it is refused."""
    return Connection(*await asyncio.open_connection(HOST, port, limit=2**26))


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    """A connection that is closed at the end."""
    connection = await connect(port)
    try:
        yield connection
    finally:
        connection.close()


async def ask_until_refused(
    port: int, draw: random.Random, seen: Counter[str], request: bytes
) -> None:
    """Ask on a connection as long as it is kept, then on another, until none can be had."""
    while True:
        try:
            connection = await connect(port)
        except OSError:
            seen["refused"] += 1
            return
        while connection.open:
            seen["sent"] += 1
            try:
                answer = await connection.ask(request)
            except (OSError, EOFError):
                seen["lost"] += 1
                connection.close()
            else:
                seen[f"{answer.status}"] += 1
                await asyncio.sleep(draw.choice((0.0, 0.001, 0.01)))


@dataclass(slots=True)
class Outcome:
    """Requests by status, and of each status the seconds from when one was due to its answer."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: dict[int, list[float]] = field(default_factory=dict)
    elapsed: float = 0.0

    def add(self, status: int, seconds: float) -> None:
        """Count one answer."""
        self.statuses[status] += 1
        self.seconds.setdefault(status, []).append(seconds)

    def percentile(self, status: int, part: float) -> float:
        """Seconds within which `part` of the answers of a status came."""
        ordered = sorted(self.seconds.get(status, [0.0]))
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]

    def rate(self, status: int) -> float:
        """Answers of a status per second."""
        return self.statuses[status] / self.elapsed


async def closed_loop(port: int, requests: list[bytes], clients: int, seconds: float) -> Outcome:
    """Each client sends one request after the other."""
    outcome = Outcome()
    start = time.perf_counter()

    async def client(number: int) -> None:
        async with connected(port) as connection:
            while time.perf_counter() < start + seconds:
                request = requests[number % len(requests)]
                number += clients
                sent = time.perf_counter()
                answer = await connection.ask(request)
                outcome.add(answer.status, time.perf_counter() - sent)

    await asyncio.gather(*(client(i) for i in range(clients)))
    outcome.elapsed = time.perf_counter() - start
    return outcome


async def open_loop(
    port: int, requests: list[bytes], rate: float, seconds: float, seed: int = 0
) -> Outcome:
    """Requests come at random, `rate` a second, whatever the server does."""
    outcome = Outcome()
    draw = random.Random(seed)  # noqa: S311  # the same arrivals every time
    idle: list[Connection] = []
    start = time.perf_counter()

    async def one(request: bytes, due: float) -> None:
        connection = idle.pop() if idle else await connect(port)
        answer = await connection.ask(request)
        outcome.add(answer.status, time.perf_counter() - due)
        if connection.open:
            idle.append(connection)

    due = start
    number = 0
    async with asyncio.TaskGroup() as group:
        while (due := due + draw.expovariate(rate)) < start + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(one(requests[number % len(requests)], due))
            number += 1
    outcome.elapsed = time.perf_counter() - start
    for connection in idle:
        connection.close()
    return outcome
