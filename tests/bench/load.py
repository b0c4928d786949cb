"""A load generator of few instructions: raw sockets, one pre-built request, keep-alive."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Run:
    """What a run took: seconds of wall clock, and each request's seconds in order of its end."""

    seconds: float
    latencies: list[float]

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, part: float) -> float:
        """Seconds within which `part` of the requests were answered."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def request(body: bytes, headers: str = "") -> bytes:
    """A POST of /v1/embeddings as bytes."""
    head = (
        "POST /v1/embeddings HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


async def drive(port: int, requests: list[bytes], clients: int, count: int) -> Run:
    """Send `count` of `requests`, taken in turn, over `clients` connections; all must be 200."""
    latencies: list[float] = []
    number = iter(range(count))
    start = time.perf_counter()
    await asyncio.gather(*(_client(port, requests, number, latencies) for _ in range(clients)))
    return Run(time.perf_counter() - start, latencies)


async def _client(port: int, requests: list[bytes], number: object, latencies: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**26)
    for i in number:  # type: ignore[attr-defined]  # one iterator shared by all clients
        begin = time.perf_counter()
        writer.write(requests[i % len(requests)])
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise AssertionError(head.decode())
        lower = head.lower()
        length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        latencies.append(time.perf_counter() - begin)
    writer.close()
    await writer.wait_closed()


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
