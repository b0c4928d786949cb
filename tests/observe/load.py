"""Traffic of every kind at once: queries, bulk, mistakes, models that fail, clients that leave."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from embedserve.diagnose import sample_texts
from tests import tiny
from tests.conftest import MINILM, ROOT
from tests.faults.traffic import Connection, connected, post

# What the server is started with: 429 comes soon, and some answers come from the cache.
FLAGS = ("--max-wait", "0.3", "--cache-mb", "64", "--max-inputs", "256", "--no-access-log")
REPEATED = 50  # queries that come again and again
BULK = 64  # texts
# Each is answered with what stands beside it, whatever else the server does but refuse for 429.
MISTAKES: tuple[tuple[dict[str, object], dict[str, str], int], ...] = (
    ({"model": "tiny", "input": "a poison b"}, {}, 500),
    ({"model": "tiny", "input": ["a", "b fail"]}, {}, 500),
    ({"model": "none", "input": "a"}, {}, 404),
    ({"model": "tiny", "input": []}, {}, 400),
    ({"model": "tiny", "input": ["a"] * 257}, {}, 400),
    ({"model": "tiny", "input": "a", "dimensions": 3}, {}, 400),
    ({"model": "tiny", "input": "a b c d a b c d", "truncate": "error"}, {}, 400),
    ({"model": "tiny", "input": "a"}, {"x_expect_fingerprint": "0" * 64}, 412),
    ({"model": "tiny", "input": "a"}, {"content_type": "text/csv"}, 415),
)


@dataclass(slots=True)
class Sent:
    """What clients sent and got."""

    requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    left: int = 0  # clients that did not wait for their answer
    wrong: list[tuple[int, int]] = field(default_factory=list)  # mistakes: expected and got


Kind = Callable[[int, Sent, random.Random], Awaitable[None]]


def artifacts(folder: Path) -> Path:
    """Artifacts of all-MiniLM-L6-v2 and of the tiny model, beside a models.toml of both."""
    made = folder / "artifacts"
    tiny.write(made / "tiny")
    (made / MINILM).symlink_to(ROOT / "artifacts" / MINILM)
    tiny.models_toml(folder / "models.toml", {MINILM: "", "tiny": ""})
    return made


async def mixed(
    port: int, seconds: float, kinds: dict[Kind, int] | None = None, seed: int = 0
) -> Sent:
    """Let so many clients of each kind ask again and again; another seed, other texts."""
    sent, end = Sent(), time.monotonic() + seconds

    async def client(kind: Kind, number: int) -> None:
        draw = random.Random(1000 * seed + number)  # noqa: S311  # the same texts every time
        while time.monotonic() < end:
            await kind(port, sent, draw)

    wanted = [kind for kind, count in (kinds or ALL).items() for _ in range(count)]
    await asyncio.gather(*(client(kind, i) for i, kind in enumerate(wanted)))
    return sent


async def query(port: int, sent: Sent, draw: random.Random) -> None:
    """Short texts, one a request; a quarter of them was asked for before."""
    async with connected(port) as connection:
        for _ in range(20):
            words = draw.choice(TEXTS).split()
            text = " ".join([str(draw.random()), *words[:6]])
            if draw.random() < 0.25:
                text = TEXTS[draw.randrange(REPEATED)]
            await _ask(connection, sent, post({"model": MINILM, "input": text}))
            if not connection.open:  # refused before its body was read
                return


async def bulk(port: int, sent: Sent, draw: random.Random) -> None:
    """Many texts, some past the model's limit; comes again when it was told to."""
    texts = [f"{draw.random()} {draw.choice(TEXTS)}" for _ in range(BULK - 2)]
    long = [" ".join(draw.choices(TEXTS, k=12)) for _ in range(2)]
    async with connected(port) as connection:
        await _ask(connection, sent, post({"model": MINILM, "input": texts + long}))


async def small(port: int, sent: Sent, draw: random.Random) -> None:
    """Another model, which takes no time; half its texts are too long for it."""
    texts = [" ".join(draw.choices("abcd", k=draw.randint(1, 12))) for _ in range(8)]
    async with connected(port) as connection:
        await _ask(connection, sent, post({"model": "tiny", "input": texts}))


async def mistaken(port: int, sent: Sent, draw: random.Random) -> None:
    """One of MISTAKES, and what is no HTTP."""
    body, headers, expected = draw.choice(MISTAKES)
    async with connected(port) as connection:
        status = await _ask(connection, sent, post(body, **headers))
        if status not in (expected, 429):
            sent.wrong.append((expected, status))
    async with connected(port) as connection:
        await connection.ask(b"hello\r\n\r\n")


async def leaving(port: int, sent: Sent, draw: random.Random) -> None:
    """Asks for much and goes; the next one comes when another client had an answer."""
    async with connected(port) as connection:
        texts = [f"{draw.random()} {draw.choice(TEXTS)}" for _ in range(BULK)]
        connection.send(post({"model": MINILM, "input": texts}))
        sent.requests += 1
        sent.left += 1
        await small(port, sent, draw)


async def _ask(connection: Connection, sent: Sent, request: bytes) -> int:
    """Ask, and wait where the answer says for how long."""
    sent.requests += 1
    answer = await connection.ask(request)
    sent.statuses[answer.status] += 1
    if late := answer.header("retry-after-ms"):
        await asyncio.sleep(min(0.2, int(late) / 1000))
    return answer.status


TEXTS = sample_texts.texts()
ALL: dict[Kind, int] = {query: 3, bulk: 4, small: 1, mistaken: 1, leaving: 1}
