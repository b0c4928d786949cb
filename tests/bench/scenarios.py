"""The loads, each as a turn of one peer: what it is sent, and what is measured of it."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.bench import corpus, load, wrk
from tests.bench.figures import percentile
from tests.bench.load import Request, Run, endless
from tests.bench.peers import OWN, RAW, ROOT, SCRATCH, URL
from tests.bench.process import Running

PARTS = (50, 70, 90)  # percent of capacity
RAMP = 1.0  # seconds of bulk before the query comes
WARM = 1  # seconds before each measured turn: caches and clocks
REST = 0.3  # seconds after the answer to a request that came behind all others
SHORT = SCRATCH / "short.jsonl"

Measured = dict[str, float]


@dataclass(frozen=True, slots=True)
class Turn:
    """One peer's turn: for how long, in which round, and what it can do (requests per second)."""

    running: Running
    seconds: int
    number: int
    capacity: float = 0.0

    @property
    def first(self) -> int:
        """Where in the texts it starts: elsewhere in each round."""
        return 97 * self.number


def body(texts: str | list[str]) -> bytes:
    """A request's body, the same for every peer."""
    return json.dumps({"model": corpus.MODEL, "input": texts}).encode()


def prepare() -> None:
    """Write the file that wrk reads."""
    SHORT.parent.mkdir(parents=True, exist_ok=True)
    SHORT.write_bytes(b"\n".join(body(text) for text in corpus.short()) + b"\n")


def requests(texts: list[list[str]]) -> list[Request]:
    return [Request(load.request(body(t)), len(t)) for t in texts]


def one(turn: Turn) -> Measured:
    """1 client, one short text."""
    if turn.running.peer.name == RAW:
        turn.running.ask({"do": "one", "seconds": WARM})
        return _of(turn.running.ask({"do": "one", "seconds": turn.seconds}))
    return _wrk(turn, 1)


def clients(turn: Turn) -> Measured:
    """32 clients, one short text."""
    if turn.running.peer.name == RAW:
        found = _of(turn.running.ask({"do": "clients", "seconds": turn.seconds}))
        return {"rate": found["texts"], "whole": found["whole"]}
    return _wrk(turn, corpus.CLIENTS)


def batches(turn: Turn) -> Measured:
    """4 clients, 32 texts of mixed lengths."""
    if turn.running.peer.name == RAW:
        return _of(turn.running.ask({"do": "batches", "seconds": turn.seconds}))
    work = endless(requests(corpus.batches()), turn.first)
    port = turn.running.port
    run = asyncio.run(load.for_seconds(port, work, corpus.BATCH_CLIENTS, turn.seconds))
    return {"texts": run.texts} | _latencies(run)


def bulk(turn: Turn) -> Measured:
    """2 clients, 32 to 256 texts of mixed lengths, back to back."""
    work = endless(requests(corpus.bulk()), turn.number)
    before = _passes(turn)
    run = asyncio.run(load.for_seconds(turn.running.port, work, corpus.BULK_CLIENTS, turn.seconds))
    count, seconds = (b - a for a, b in zip(before, _passes(turn), strict=True))
    return {"texts": run.texts} | ({"pass": seconds / count} if count else {})


def beside(turn: Turn) -> Measured:
    """1 client, one short text, beside those 2 bulk clients."""
    return asyncio.run(_beside(turn))


async def _beside(turn: Turn) -> Measured:
    port, until = turn.running.port, asyncio.Event()
    work = endless(requests(corpus.bulk()), turn.number)
    heavy = asyncio.create_task(load.closed(port, work, corpus.BULK_CLIENTS, until))
    await asyncio.sleep(RAMP)
    arguments = (str(port), str(turn.seconds), str(SHORT), str(turn.first))
    program = (sys.executable, "-m", "tests.bench.load")
    query = await asyncio.create_subprocess_exec(
        *program, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await query.communicate()
    until.set()
    run = await heavy
    return {"texts": run.texts} | _latencies(Run(0.0, 0.0, json.loads(printed)))


def at(part: int) -> Callable[[Turn], Measured]:
    """One short text at random times, `part` percent of what the peer answers with 32 clients."""

    def measure(turn: Turn) -> Measured:
        work, rate = endless(requests([[t] for t in corpus.short()]), turn.first), turn.capacity
        run = asyncio.run(load.open_loop(turn.running.port, work, rate * part / 100, turn.seconds))
        return {"rate": run.rate} | _latencies(run)

    return measure


# name -> how it is measured; in this order, `clients` before what needs the capacity.
SCENARIOS: Mapping[str, Callable[[Turn], Measured]] = {
    "one": one,
    "clients": clients,
    "batches": batches,
    "bulk": bulk,
    "beside": beside,
    **{f"open_{part}": at(part) for part in PARTS},
}
# What raw onnxruntime takes part in: it has no clients.
RAW_SCENARIOS = ("one", "clients", "batches")


def _wrk(turn: Turn, connections: int) -> Measured:
    port = turn.running.port
    wrk.run(port, URL, SHORT, connections, WARM, turn.first)
    _settle(turn)
    found = wrk.run(port, URL, SHORT, connections, turn.seconds, turn.first)
    _settle(turn)
    return {"rate": found.rate, "p50": found.p50, "p99": found.p99}


def _settle(turn: Turn) -> None:
    """Wait for what the peer still computes for clients that have gone."""
    turn.running.embed([corpus.QUERIES[0]])
    time.sleep(REST)


def _latencies(run: Run) -> Measured:
    return {"p50": percentile(run.latencies, 0.5), "p99": percentile(run.latencies, 0.99)}


def _of(found: Mapping[str, object]) -> Measured:
    return {name: float(str(value)) for name, value in found.items()}


def _passes(turn: Turn) -> tuple[float, float]:
    """How many forward passes embedserve has run, and the seconds they took; else zeros."""
    if turn.running.peer.name != OWN:
        return 0.0, 0.0
    url = f"http://127.0.0.1:{turn.running.port}/metrics"
    with urllib.request.urlopen(url) as answer:  # this host
        text = answer.read().decode()
    name = r"^embedserve_inference_duration_seconds_{}\{{.*\}} (\S+)$"
    count, seconds = (re.findall(name.format(n), text, re.M) for n in ("count", "sum"))
    return sum(map(float, count)), sum(map(float, seconds))
