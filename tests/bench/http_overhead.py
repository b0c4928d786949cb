"""What a request costs beside its pass: python -m tests.bench.http_overhead

The server's processor time for a request of one text at 32 clients, and requests a second: with a
constant in the place of the session (access log on), in the place of the whole engine, and of bare
uvicorn and starlette answering the same bytes; in turns in one run. Then the time for answers of
2,048 x 384 as float JSON, base64 and raw octets. Bars: passes 160 us and 5,500 requests a second;
base64 at most 1/4, octets at most 1/10 of float JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

from tests.bench.load import drive, request
from tests.bench.process import cpu_seconds

CLIENTS, COUNT, ROUNDS = 32, 6000, 7
ONE = request(json.dumps({"input": "what is an embedding"}).encode())
KINDS = ("passes", "engine", "bare")


@contextlib.contextmanager
def serving(kind: str) -> Iterator[tuple[int, int]]:
    """A running constant server: its port and pid."""
    command = [sys.executable, "-m", "tests.bench.constant_server", kind]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            process.terminate()


class Cost(NamedTuple):
    """Of one request: seconds of the server's processor time; and requests a second."""

    seconds: float
    rate: float


def per_request(port: int, pid: int, sent: bytes, clients: int, count: int) -> Cost:
    """Send `count` requests."""
    before, start = cpu_seconds(pid), time.perf_counter()
    asyncio.run(drive(port, sent, clients, count))
    elapsed = time.perf_counter() - start
    return Cost((cpu_seconds(pid) - before) / count, count / elapsed)


def many(encoding: str, headers: str = "") -> bytes:
    """A request of 2,048 short texts."""
    texts = [f"text number {i}" for i in range(2048)]
    body = {"input": texts, "encoding_format": encoding}
    return request(json.dumps(body).encode(), headers)


def main() -> None:
    """Measure in turns, print medians and ratios."""
    with contextlib.ExitStack() as started:
        servers = {kind: started.enter_context(serving(kind)) for kind in KINDS}
        for server in servers.values():
            per_request(*server, ONE, CLIENTS, 1000)
        seen: list[dict[str, Cost]] = [
            {kind: per_request(*server, ONE, CLIENTS, COUNT) for kind, server in servers.items()}
            for _ in range(ROUNDS)
        ]
        for kind in KINDS:
            cost = median(each[kind].seconds for each in seen) * 1e6
            rate = median(each[kind].rate for each in seen)
            ratio = median(each[kind].seconds / each["bare"].seconds for each in seen)
            print(f"{kind}: {cost:.0f} us, {ratio:.2f} of bare, {rate:.0f} requests/s", flush=True)
        kinds = {
            "float": many("float"),
            "base64": many("base64"),
            "octets": many("float", "accept: application/octet-stream\r\n"),
        }
        rounds = [
            {k: per_request(*servers["engine"], s, 1, 40).seconds for k, s in kinds.items()}
            for _ in range(ROUNDS)
        ]
        for kind in kinds:
            ms = median(r[kind] for r in rounds) * 1e3
            part = median(r[kind] / r["float"] for r in rounds)
            print(f"2,048 x 384 as {kind}: {ms:.1f} ms, {part:.3f} of float JSON")


if __name__ == "__main__":
    main()
