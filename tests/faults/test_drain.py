"""SIGTERM under traffic: nothing that was sent on an open connection is lost."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import Server, Start
from tests.faults.traffic import Answer, ask_until_refused, connected, get, post

pytestmark = pytest.mark.anyio

REQUEST = post({"model": "tiny", "input": "a b c"})
LONG = post({"model": "tiny", "input": [f"a b c {i}" for i in range(500)]})
CLIENTS = 40
DRAIN = 5.0  # seconds
SLOW = pytest.mark.slow


@pytest.fixture
def server(start: Start, tiny_artifacts: Path) -> Server:
    flags = ("--drain-seconds", str(DRAIN), "--no-access-log")
    return start(tiny_artifacts.parent / "models.toml", tiny_artifacts, *flags)


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


async def terminate(server: Server, seed: int, request: bytes = REQUEST) -> Counter[str]:
    """SIGTERM at a random moment under CLIENTS clients; what became of their requests."""
    draw = random.Random(seed)  # noqa: S311  # the same moments every time
    seen: Counter[str] = Counter()
    clients = [ask_until_refused(port_of(server), draw, seen, request) for _ in range(CLIENTS)]
    running = asyncio.gather(*clients)
    await asyncio.sleep(0.1 + 0.3 * draw.random())
    server.process.send_signal(signal.SIGTERM)
    await running
    return seen


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(i, marks=SLOW) for i in range(2, 20))])
async def test_nothing_is_lost(server: Server, seed: int) -> None:
    """40 keep-alive clients: each request gets its answer, then connections are refused; exit 0."""
    seen = await terminate(server, seed)
    print(dict(seen))
    assert seen["lost"] == 0
    assert seen["sent"] == seen["200"] > CLIENTS
    assert seen["refused"] == CLIENTS
    assert server.process.wait(DRAIN + 5) == 0


async def test_what_was_accepted_has_time_for_its_answer(server: Server) -> None:
    """Clients that never pause: new connections end first, and every request gets its answer."""
    seen = await terminate(server, 0, LONG)
    print(dict(seen))
    assert seen["lost"] == 0
    assert seen["sent"] == seen["200"] > CLIENTS
    assert seen["refused"] == CLIENTS


async def test_it_serves_on_while_it_drains(server: Server) -> None:
    """Readiness fails at once, liveness does not; new connections are served, and all close."""

    async with connected(port_of(server)) as kept:
        assert not (await kept.ask(REQUEST)).closes
        server.process.send_signal(signal.SIGTERM)
        ready = await _ask_anew(server, get("/readyz"))
        while ready.status == 200:
            ready = await _ask_anew(server, get("/readyz"))
        assert ready.status == 503
        assert b"shutting down" in ready.body
        assert (await _ask_anew(server, get("/livez"))).status == 200
        scraped = (await _ask_anew(server, get("/metrics"))).body
        assert b"\nembedserve_ready 0.0\n" in scraped
        assert b"\nembedserve_live 1.0\n" in scraped
        assert (await _ask_anew(server, REQUEST)).status == 200
        last = await kept.ask(REQUEST)
        assert (last.status, last.closes) == (200, True)
    assert server.process.wait(DRAIN + 5) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
async def test_a_second_signal_shortens_it(start: Start, tiny_artifacts: Path, second: int) -> None:
    """A client that asks again and again keeps it up for the whole time; unless asked twice."""
    flags = ("--drain-seconds", "3600")
    server = start(tiny_artifacts.parent / "models.toml", tiny_artifacts, *flags)

    assert (await _ask_anew(server, REQUEST)).status == 200  # it serves
    draw = random.Random(0)  # noqa: S311  # the same moments every time
    asking = asyncio.create_task(ask_until_refused(port_of(server), draw, Counter(), REQUEST))
    server.process.send_signal(signal.SIGTERM)
    while (await _ask_anew(server, get("/readyz"))).status == 200:
        pass
    assert (await _ask_anew(server, REQUEST)).status == 200
    server.process.send_signal(second)
    await asking
    assert server.process.wait(10) == 0


async def test_an_idle_connection_does_not_hold_it(server: Server) -> None:
    """A client that keeps a connection and asks nothing is let go after a second."""

    async with connected(port_of(server)) as idle, connected(port_of(server)):
        await idle.ask(REQUEST)
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, DRAIN - 1) == 0


async def _ask_anew(server: Server, request: bytes) -> Answer:
    async with connected(port_of(server)) as connection:
        return await connection.ask(request)
