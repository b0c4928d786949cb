"""Closed loops in processes of their own, so that the clients are not the limit.

As a program, one of them: python -m tests.gpu.load PORT SECONDS CLIENTS FILE, which has a request's
body a line.
"""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.bench import load
from tests.gpu import texts
from tests.gpu.place import ROOT, Place

WARM_UP = 0.5  # seconds
# Each client's requests before they repeat: its answers have come long before.
REQUESTS = 6


class Load(NamedTuple):
    """`clients` connections over `processes`; each request has `size` texts of a kind."""

    kind: str
    size: int
    clients: int
    processes: int = 8
    encoding: str = "base64"


class Rate(NamedTuple):
    """Texts and requests a second, and requests' seconds."""

    texts: float
    requests: float
    p50: float
    p99: float


class Loading:
    """Clients that run. `rate` waits for their end."""

    def __init__(self, place: Place, port: int, model: str, wanted: Load, seconds: float) -> None:
        self._folder = tempfile.TemporaryDirectory()
        processes = min(wanted.processes, wanted.clients)
        each = math.ceil(wanted.clients / processes)
        requests = texts.requests(wanted.kind, wanted.size, REQUESTS * each * processes)
        self._processes = []
        for number in range(processes):
            path = Path(self._folder.name) / f"{number}"
            with path.open("w", encoding="utf-8") as file:
                for inputs in requests[number::processes]:
                    body = {"model": model, "input": inputs, "encoding_format": wanted.encoding}
                    file.write(json.dumps(body) + "\n")
            command = [sys.executable, "-m", "tests.gpu.load", str(port), str(seconds)]
            self._processes.append(
                subprocess.Popen(
                    [*command, str(each), str(path)],
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                    env=place.environment(),
                )
            )

    def rate(self) -> Rate:
        """What all of them saw together; AssertionError when one of them failed."""
        found = []
        for process in self._processes:
            output, _ = process.communicate(timeout=120)
            if process.returncode:
                raise AssertionError(f"a client ended with {process.returncode}")
            found.append(json.loads(output))
        self._folder.cleanup()
        latencies = sorted(seconds for one in found for seconds in one["latencies"])
        return Rate(
            sum(one["texts"] for one in found),
            sum(one["rate"] for one in found),
            percentile(latencies, 0.5),
            percentile(latencies, 0.99),
        )


def percentile(ordered: Sequence[float], part: float) -> float:
    """Of what is in order."""
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


async def _drive(port: int, seconds: float, clients: int, sent: list[load.Request]) -> load.Run:
    await load.for_seconds(port, load.endless(sent), clients, WARM_UP)
    return await load.for_seconds(port, load.endless(sent), clients, seconds)


def main(port: str, seconds: str, clients: str, bodies: str) -> None:
    """One process of clients."""
    lines = Path(bodies).read_bytes().splitlines()
    sent = [load.Request(load.request(line), len(json.loads(line)["input"])) for line in lines]
    run = asyncio.run(_drive(int(port), float(seconds), int(clients), sent))
    print(json.dumps({"texts": run.texts, "rate": run.rate, "latencies": run.latencies}))


if __name__ == "__main__":
    main(*sys.argv[1:])
