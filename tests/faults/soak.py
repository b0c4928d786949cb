"""Mixed traffic for long: what is asked, what must come back, and what the process then holds."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from dataclasses import dataclass, field

from embedserve.diagnose.sample_texts import texts
from tests.conftest import MINILM
from tests.faults.traffic import Answer, Connection, connect, connected, post
from tests.faults.watched import descriptors, resident, threads

CLIENTS = 24
BURST = 32  # requests of 32 texts each at once, five times in a run
BAD: tuple[tuple[bytes, int], ...] = (
    (post({"model": MINILM, "input": ""})[:-1] + b"x", 400),  # no JSON
    (post({"model": MINILM, "input": [1.5]}), 400),
    (post({"model": MINILM, "input": "a", "dimensions": 3}), 400),
    (post({"model": "no such model", "input": "a"}), 404),
    (post({"model": MINILM, "input": "a"}, content_encoding="gzip"), 415),
)
PARTS = {"bad": 0.05, "leaves": 0.05}  # of all requests; the others are good


@dataclass(slots=True)
class Soak:
    """What a run found. Memory in bytes, at a fifth of the run and at its end."""

    counts: Counter[str] = field(default_factory=Counter)
    early: int = 0
    late: int = 0
    descriptors: tuple[int, int] = (0, 0)  # before and after
    threads: tuple[int, int] = (0, 0)

    @property
    def growth(self) -> int:
        """Bytes between a fifth of the run and its end."""
        return self.late - self.early

    @property
    def allowed(self) -> int:
        """20 MB, or 3 % where that is more."""
        return max(20_000_000, 3 * self.early // 100)


class Traffic:
    """Requests drawn at random, and the right bytes of each text."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)  # noqa: S311  # the same requests every time
        # Mostly queries, and passages.
        self.texts = [t if i % 4 == 0 else t[:40] for i, t in enumerate(texts(400))]
        self.rows: dict[str, bytes] = {}

    async def learn(self, connection: Connection) -> None:
        """Ask for each text alone, once."""
        for text in self.texts:
            self.rows[text] = (await self.ask(connection, [text])).body

    async def ask(self, connection: Connection, asked: list[str]) -> Answer:
        """Ask for the raw rows."""
        body = {"model": MINILM, "input": asked}
        return await connection.ask(post(body, accept="application/octet-stream"))

    def some(self) -> list[str]:
        """One text mostly, sometimes up to 8."""
        count = 1 if self.draw.random() < 0.85 else self.draw.randint(2, 8)
        return self.draw.choices(self.texts, k=count)

    async def good(self, connection: Connection, asked: list[str]) -> str:
        """Whether every row is the one the text has alone, to the bit."""
        answer = await self.ask(connection, asked)
        right = answer.status == 200 and answer.body == b"".join(self.rows[t] for t in asked)
        return "right" if right else f"wrong: {answer.status}"

    async def bad(self, connection: Connection) -> str:
        """Whether a bad request gets its status."""
        request, status = self.draw.choice(BAD)
        answer = await connection.ask(request)
        return "refused" if answer.status == status else f"wrong: {answer.status} for {status}"


async def run(port: int, pid: int, count: int, seed: int) -> Soak:
    """Send `count` requests from CLIENTS clients; what came back, and what the process holds."""
    soak, traffic = Soak(), Traffic(seed)
    async with connected(port) as connection:
        await traffic.learn(connection)
        before = descriptors(pid) - 1, threads(pid)
    numbers = itertools.count()

    async def client() -> None:
        connection = await connect(port)
        for number in numbers:
            if number >= count:
                break
            if not connection.open or traffic.draw.random() < 0.02:
                connection.close()
                connection = await connect(port)
            await _one(traffic, connection, soak)
            if number == count // 5:
                soak.early = resident(pid)
            if number % (count // 5) == count // 10:
                await _burst(port, traffic, soak)
        connection.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    async with connected(port) as connection:
        while descriptors(pid) > before[0] + 1:  # connections whose end it has still to see
            await traffic.ask(connection, ["one more"])
        soak.late = resident(pid)
        soak.descriptors = before[0], descriptors(pid) - 1  # this connection's
        soak.threads = before[1], threads(pid)
    return soak


async def _one(traffic: Traffic, connection: Connection, soak: Soak) -> None:
    kind = traffic.draw.random()
    if kind < PARTS["bad"]:
        soak.counts[await traffic.bad(connection)] += 1
    elif kind < PARTS["bad"] + PARTS["leaves"]:
        connection.send(post({"model": MINILM, "input": traffic.some()}))
        await asyncio.sleep(traffic.draw.choice((0.0, 0.002, 0.02)))
        connection.close()
        soak.counts["left"] += 1
    else:
        soak.counts[await traffic.good(connection, traffic.some())] += 1


async def _burst(port: int, traffic: Traffic, soak: Soak) -> None:
    async def one() -> None:
        async with connected(port) as connection:
            asked = traffic.draw.choices(traffic.texts, k=32)
            soak.counts[await traffic.good(connection, asked)] += 1

    await asyncio.gather(*(one() for _ in range(BURST)))
