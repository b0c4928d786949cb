"""Clients that leave, stall, flood or lie: refused at the limit, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from embedserve.http.connection import HEAD_SECONDS, LINGER_SECONDS
from tests.bench.figures import percentile
from tests.conftest import MINILM, ROOT, Server, Start
from tests.faults.traffic import HOST, Connection, connected, get, post
from tests.faults.watched import descriptors, resident

pytestmark = pytest.mark.anyio

LEAVING = 100
SLOW = 500
IDLE = 5000
TINY = post({"model": "tiny", "input": "a b c"})
MB = 1_000_000


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


async def metrics(connection: Connection) -> dict[str, float]:
    """Every series by its name and labels."""
    text = (await connection.ask(get("/metrics"))).body.decode()
    pairs = re.findall(r"^(embedserve_\S+) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in pairs}


async def settle(connection: Connection, wanted: Callable[[dict[str, float]], bool]) -> float:
    """Seconds until the metrics are as wanted; the suite's timeout bounds it."""
    start = time.perf_counter()
    while not wanted(await metrics(connection)):
        pass
    return time.perf_counter() - start


async def test_clients_that_leave_while_queued_are_never_computed(start: Start) -> None:
    """100 requests behind a long one, all closed: none of their texts runs; gauges at 0 in 1 s."""
    # One pass of a second or so: none of theirs comes between.
    flags = ("--model", MINILM, "--lanes", "1", "--tokens-per-pass", "20000")
    server = start(ROOT / "models.toml", ROOT / "artifacts", *flags)
    label = f'{{model="{MINILM}"}}'
    waiting, running = f"embedserve_queue_depth{label}", f"embedserve_requests_in_flight{label}"
    pass_began = f"embedserve_queue_wait_seconds_count{label}"
    long = [f"{i} " + "word " * 250 for i in range(60)]
    words = [f"text number {i} of those who leave" for i in range(LEAVING)]

    async with connected(port_of(server)) as watch, connected(port_of(server)) as busy:
        stays = asyncio.create_task(busy.ask(post({"model": MINILM, "input": long})))
        await settle(watch, lambda now: now[running] == 1 and now[pass_began] == 1)
        async with AsyncExitStack() as stack:
            leaving = [await stack.enter_async_context(connected(port_of(server))) for _ in words]
            asking = [
                asyncio.create_task(client.ask(post({"model": MINILM, "input": [word] * 3})))
                for client, word in zip(leaving, words, strict=True)
            ]
            await settle(watch, lambda now: now[running] == 1 + LEAVING)
        seconds = await settle(watch, lambda now: now[running] <= 1)
        await asyncio.gather(*asking, return_exceptions=True)
        assert (await stays).status == 200
        done = await settle(watch, lambda now: now[running] == now[waiting] == 0)
        found = await metrics(watch)
        cancelled = f'embedserve_requests_total{{model="{MINILM}",outcome="cancelled"}}'
        assert found[cancelled] == LEAVING
        assert found[f"embedserve_batch_size_sum{label}"] == len(long)
        assert found["embedserve_pending_bytes"] == 0
        assert max(seconds, done) <= 1
        print(f"{LEAVING} left: gauges back in {seconds * 1e3:.0f} ms")


@pytest.fixture(scope="module")
def server(start: Start, tiny_artifacts: Path) -> Server:
    """One server that all attack, with short patience for bodies."""
    flags = ("--max-body-seconds", "3", "--max-connections", "10000", "--no-access-log")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))  # the server's too
    return start(tiny_artifacts.parent / "models.toml", tiny_artifacts, *flags)


async def good(port: int, seconds: float, bodies: Path) -> float:
    """p95, in seconds, of a client that sends one request after the other: each is answered 200.

    In a process of its own: thousands of connections of one process delay its clock.
    """
    arguments = ("-m", "tests.bench.load", str(port), str(seconds), str(bodies), "0")
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    return percentile(json.loads(printed), 0.95)


Half = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def end(writer: asyncio.StreamWriter) -> None:
    """Close it now, whatever the server has not taken: one that still waits would be warned of."""
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()


@asynccontextmanager
async def half_open(port: int, sent: bytes, count: int) -> AsyncIterator[list[Half]]:
    """Connections that sent so much and nothing more."""
    made: list[Half] = []
    try:
        for _ in range(count):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(sent)
            made.append((reader, writer))
        yield made
    finally:
        for _, writer in made:
            await end(writer)


async def seconds_to_close(halves: list[Half]) -> list[float]:
    """When each was closed by the server; what it said before is read."""
    start = time.perf_counter()

    async def one(reader: asyncio.StreamReader) -> float:
        with suppress(ConnectionError):
            await reader.read()
        return time.perf_counter() - start

    return await asyncio.gather(*(one(reader) for reader, _ in halves))


@pytest.mark.slow
async def test_slow_and_idle_clients(server: Server, tmp_path: Path) -> None:
    """500 slow heads, 500 stalled bodies, 5,000 idle: closed on time, or held at 5 KB each."""
    port = port_of(server)
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    pid = server.process.pid
    bodies = tmp_path / "bodies"
    bodies.write_bytes(TINY.partition(b"\r\n\r\n")[2])

    calm = await good(port, 5, bodies)
    before, open_before = resident(pid), descriptors(pid)
    async with half_open(port, TINY, IDLE) as idle:
        for reader, _ in idle:
            await reader.readuntil(b"\r\n\r\n")
        held = (resident(pid) - before) / IDLE
        async with (
            half_open(port, head, SLOW) as heads,
            half_open(port, head + b"content-length: 100\r\n\r\n{", SLOW) as stalled,
        ):
            late_heads, late_bodies, disturbed = await asyncio.gather(
                seconds_to_close(heads),
                seconds_to_close(stalled),
                good(port, HEAD_SECONDS + 3, bodies),
            )
        print(
            f"heads closed after {max(late_heads):.1f} s, bodies {max(late_bodies):.1f} s; "
            f"idle {held:.0f} bytes each; a good one's p95 {calm * 1e3:.2f}, then "
            f"{disturbed * 1e3:.2f} ms"
        )
        assert max(late_heads) <= HEAD_SECONDS + LINGER_SECONDS + 1
        assert max(late_bodies) <= 3 + LINGER_SECONDS + 1
        assert held <= 5_000
        assert disturbed <= 1.5 * calm
    async with connected(port) as connection:
        await settle(connection, lambda _: descriptors(pid) <= open_before + 1)


async def flood(port: int, sent: bytes, piece: bytes, most: int) -> tuple[bytes, int]:
    """Send and send until the server has had enough; what it said, and how much it took."""
    reader, writer = await asyncio.open_connection(HOST, port)
    said: list[bytes] = []

    async def listen() -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                said.append(data)

    listening = asyncio.create_task(listen())
    writer.write(sent)
    taken = len(sent)
    with suppress(ConnectionError):
        while taken < most and not listening.done():
            writer.write(piece)
            taken += len(piece)
            await writer.drain()
            await asyncio.sleep(0)
    await listening
    await end(writer)
    return b"".join(said), taken


GZIP = b"\x1f\x8b\x08" + bytes(1_000_000)
FLOODS: dict[str, tuple[bytes, bytes, int, bytes]] = {
    "headers": (b"GET / HTTP/1.1\r\nhost: x\r\n", b"x-field: " + b"v" * 1000 + b"\r\n", 431, b""),
    "one header": (b"GET / HTTP/1.1\r\nhost: x\r\nx: ", b"v" * 65536, 431, b""),
    "url of 100 MB": (b"GET /", b"a" * 65536, 414, b""),
    "endless chunks": (
        b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\n",
        b"10000\r\n" + b" " * 65536 + b"\r\n",
        413,  # or 429 while the others' pieces are held
        b"",
    ),
    "gzip bomb": (
        b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-encoding: gzip\r\ncontent-length: 100000000\r\n\r\n",
        GZIP,
        415,
        b"unsupported_encoding",
    ),
    "trailers": (
        b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\n0\r\n",
        b"x-trailer: " + b"v" * 1000 + b"\r\n",
        431,
        b"",
    ),
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_floods_are_refused_at_the_limit(server: Server, kind: str) -> None:
    """Ten at once: the error can be read, and memory is within 20 MB of before."""
    sent, piece, status, code = FLOODS[kind]
    port, pid = port_of(server), server.process.pid
    limit = 34 * MB if kind == "endless chunks" else 0
    await flood(port, sent, piece, 100 * MB)  # once, for what is allocated once
    before = resident(pid)

    floods = (flood(port, sent, piece, 100 * MB) for _ in range(10))
    for said, taken in await asyncio.gather(*floods):
        found = int(said[9:12] or b"0")
        # Bodies without end shut out one another: 429, and 408 for one that is slow meanwhile.
        assert found == status or (kind == "endless chunks" and found in (408, 429)), said[:100]
        assert code in said
        error = json.loads(said.partition(b"\r\n\r\n")[2])["error"]
        assert error["message"]
        assert taken <= limit + 16 * MB  # what the kernel's buffers took besides
    async with connected(port) as connection:
        await settle(connection, lambda _: resident(pid) - before <= 20 * MB)
    assert server.embed(model="tiny", input="a b c").status_code == 200


async def test_half_a_request_and_gone(server: Server) -> None:
    """Clients that leave in the middle of anything: nothing of them stays."""
    pid = server.process.pid
    cuts = [TINY[:n] for n in range(1, len(TINY), 7)]

    async with connected(port_of(server)) as connection:
        await connection.ask(TINY)
        before = descriptors(pid)
        for cut in cuts:
            _, writer = await asyncio.open_connection(HOST, port_of(server))
            writer.write(cut)
            writer.transport.abort()
        await settle(connection, lambda _: descriptors(pid) <= before)
        assert (await metrics(connection))["embedserve_pending_bytes"] == 0
        assert (await connection.ask(TINY)).status == 200


async def test_a_client_that_does_not_read_is_counted_until_it_has(start: Start) -> None:
    """Answers that nobody takes are held within max_pending_mb: others get 429, then their turn."""
    server = start(
        ROOT / "models.toml", ROOT / "artifacts", "--model", MINILM, "--max-pending-mb", "8"
    )
    request = post({"model": MINILM, "input": [f"{i} words" for i in range(800)]})

    async with connected(port_of(server)) as watch, AsyncExitStack() as stack:
        # 800 x 384 as JSON is 4 MB: more than the kernel's buffers take.
        silent = await stack.enter_async_context(half_open(port_of(server), request, 1))
        held = "embedserve_pending_bytes"
        await settle(watch, lambda now: now[held] > 0 and _in_flight(now) == 0)
        refused = await watch.ask(request)
        assert (refused.status, b"queue_full" in refused.body) == (429, True)
        reader = silent[0][0]
        await reader.readuntil(b"\r\n\r\n")
        reading = asyncio.create_task(reader.read())
        async with connected(port_of(server)) as again:
            await settle(again, lambda now: now[held] == 0)
            assert (await again.ask(request)).status == 200
        reading.cancel()


def _in_flight(now: dict[str, float]) -> float:
    return now[f'embedserve_queue_depth{{model="{MINILM}"}}']
