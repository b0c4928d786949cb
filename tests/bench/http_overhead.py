"""What the HTTP layer costs: python -m tests.bench.http_overhead

Processor time of the server per one-text request at 32 clients, with the engine replaced by a
constant, beside bare uvicorn and starlette answering the same bytes, in turns in one run. Then the
server's time for 2,048 x 384 answers as float JSON, base64 and raw octets. Bars: 250 us and 2.0
times bare; base64 at most 1/4, octets at most 1/10 of float JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from statistics import median

from tests.bench.load import drive, request
from tests.bench.process import cpu_seconds

CLIENTS, COUNT, ROUNDS = 32, 6000, 7
ONE = request(json.dumps({"model": "tiny", "input": "what is an embedding"}).encode())


@contextlib.contextmanager
def serving(kind: str) -> Iterator[tuple[int, int]]:
    """A running constant server: its port and pid."""
    command = [sys.executable, "-m", "tests.bench.constant_server", kind, "384"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            process.terminate()


def per_request(port: int, pid: int, sent: bytes, clients: int, count: int) -> float:
    """Seconds of the server's processor time per request."""
    before = cpu_seconds(pid)
    asyncio.run(drive(port, sent, clients, count))
    return (cpu_seconds(pid) - before) / count


def many(encoding: str, headers: str = "") -> bytes:
    """A request of 2,048 short texts."""
    texts = [f"text number {i}" for i in range(2048)]
    body = {"model": "tiny", "input": texts, "encoding_format": encoding}
    return request(json.dumps(body).encode(), headers)


def main() -> None:
    """Measure in turns, print medians and ratios."""
    with serving("embedserve") as ours, serving("bare") as bare:
        for server in (ours, bare):
            per_request(*server, ONE, CLIENTS, 1000)
        pairs = [
            [per_request(*s, ONE, CLIENTS, COUNT) for s in (ours, bare)] for _ in range(ROUNDS)
        ]
        own, other = (median(column) * 1e6 for column in zip(*pairs, strict=True))
        ratio = median(a / b for a, b in pairs)
        print(f"one text, {CLIENTS} clients: {own:.0f} us; bare {other:.0f} us; ratio {ratio:.2f}")
        kinds = {
            "float": many("float"),
            "base64": many("base64"),
            "octets": many("float", "accept: application/octet-stream\r\n"),
        }
        rounds = [
            {kind: per_request(*ours, sent, 1, 40) for kind, sent in kinds.items()}
            for _ in range(ROUNDS)
        ]
        for kind in kinds:
            ms = median(r[kind] for r in rounds) * 1e3
            part = median(r[kind] / r["float"] for r in rounds)
            print(f"2,048 x 384 as {kind}: {ms:.1f} ms, {part:.3f} of float JSON")


if __name__ == "__main__":
    main()
