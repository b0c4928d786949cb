"""More traffic than the server can take: what it admits it answers in time, the rest is refused."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import pytest

from embedserve.diagnose.sample_texts import texts
from tests.conftest import MINILM, ROOT, Server, Start
from tests.faults.traffic import Outcome, closed_loop, connected, get, open_loop, post
from tests.faults.watched import bound, resident

TEXTS = 8  # in a request
MAX_WAIT = 0.5
CLIENTS = 16  # fill the lanes
UNLOADED = 0.2  # of the peak: hardly anything waits


@dataclass(frozen=True, slots=True)
class Bench:
    """A server of the real model, and what it does at its best and with little to do."""

    server: Server
    port: int
    requests: list[bytes]
    peak: float
    unloaded: Outcome

    def at(self, times: float, seconds: float) -> Outcome:
        """Traffic of so many times the peak."""
        return asyncio.run(open_loop(self.port, self.requests, times * self.peak, seconds))


@pytest.fixture(scope="module")
def bench(start: Start) -> Bench:
    asked = texts()
    batches = [asked[i : i + TEXTS] for i in range(0, len(asked), TEXTS)]
    requests = [post({"model": MINILM, "input": batch}) for batch in batches]
    # The peak is of a server that refuses nobody: on a slow machine so many clients meet 429.
    best = _peak(start, requests)
    flags = ("--model", MINILM, "--max-wait", str(MAX_WAIT))
    server = start(ROOT / "models.toml", ROOT / "artifacts", *flags)
    port = int(server.url.rpartition(":")[2])
    unloaded = asyncio.run(open_loop(port, requests, UNLOADED * best.rate(200), 4))
    return Bench(server, port, requests, best.rate(200), unloaded)


def _peak(start: Start, requests: list[bytes]) -> Outcome:
    server = start(ROOT / "models.toml", ROOT / "artifacts", "--model", MINILM)
    port = int(server.url.rpartition(":")[2])
    asyncio.run(closed_loop(port, requests, CLIENTS, 1))
    best = asyncio.run(closed_loop(port, requests, CLIENTS, 4))
    assert set(best.statuses) == {200}
    server.stop()
    return best


def test_a_refusal_says_when_to_come_again(bench: Bench) -> None:
    """429 with both headers, soon enough to be true; only 200 and 429; within the memory bound."""

    async def overload() -> tuple[Outcome, int]:
        traffic = asyncio.create_task(open_loop(bench.port, bench.requests, 4 * bench.peak, 3))
        async with connected(bench.port) as connection:
            refusal = await connection.ask(bench.requests[0])
            while refusal.status != 429:
                refusal = await connection.ask(bench.requests[0])
            wait = int(refusal.header("retry-after-ms") or "")
            assert 0 < wait <= 1000 * int(refusal.header("retry-after") or "")
        return await traffic, wait

    outcome, wait = asyncio.run(overload())
    assert set(outcome.statuses) == {200, 429}
    assert wait <= 1000 * MAX_WAIT
    assert resident(bench.server.process.pid) <= bound(bench.server.log)


@pytest.mark.slow
def test_three_times_capacity(bench: Bench) -> None:
    """20 s: goodput of 90 %; p99 of each 429 is 50 ms, of the admitted 1.5 times the limit."""
    outcome = bench.at(3, 20)
    goodput = outcome.rate(200) / bench.peak
    print(
        f"3x: goodput {goodput:.2f}, 429 p99 {outcome.percentile(429, 0.99) * 1e3:.1f} ms, "
        f"admitted p99 {outcome.percentile(200, 0.99):.2f} s, {dict(outcome.statuses)}, "
        f"{resident(bench.server.process.pid) / 1e6:.0f} of {bound(bench.server.log) / 1e6:.0f} MB"
    )
    assert set(outcome.statuses) == {200, 429}
    assert goodput >= 0.9
    assert outcome.percentile(429, 0.99) <= 0.05
    assert outcome.percentile(200, 0.99) <= 1.5 * MAX_WAIT
    assert resident(bench.server.process.pid) <= bound(bench.server.log)


@pytest.mark.slow
def test_ten_times_capacity(bench: Bench) -> None:
    """10 s: goodput of 85 %, livez within 100 ms (p99); 2 s later p95 within 1.5 of unloaded."""

    async def overload() -> tuple[Outcome, Outcome]:
        probes = asyncio.create_task(open_loop(bench.port, [get("/livez")], 20, 10))
        outcome = await open_loop(bench.port, bench.requests, 10 * bench.peak, 10)
        return outcome, await probes

    outcome, probes = asyncio.run(overload())
    time.sleep(2)
    after = bench.at(UNLOADED, 4)
    goodput = outcome.rate(200) / bench.peak
    before = bench.unloaded.percentile(200, 0.95)
    print(
        f"10x: goodput {goodput:.2f}, livez p99 {probes.percentile(200, 0.99) * 1e3:.1f} ms, p95 "
        f"after {after.percentile(200, 0.95) * 1e3:.1f} ms, unloaded {before * 1e3:.1f} ms"
    )
    assert set(outcome.statuses) == {200, 429}
    assert set(probes.statuses) == {200}
    assert goodput >= 0.85
    assert probes.percentile(200, 0.99) <= 0.1
    assert after.percentile(200, 0.95) <= 1.5 * before
