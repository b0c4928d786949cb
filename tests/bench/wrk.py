"""wrk: a closed loop of one-text requests that takes next to nothing of the cores."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True, slots=True)
class Closed:
    """Requests per second, and latencies in seconds."""

    rate: float
    p50: float
    p99: float


def run(port: int, path: str, bodies: Path, clients: int, seconds: int, first: int = 0) -> Closed:
    """Send a file's bodies (one a line, from number `first`) over `clients` connections."""
    url = f"http://127.0.0.1:{port}{path}"
    flags = ["-t", "1", "-c", str(clients), "-d", str(seconds), "--timeout", "60"]
    command = ["wrk", *flags, "-s", str(SCRIPT), url, "--", str(bodies), str(first)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stderr)
    if found["errors"] or not found["requests"]:
        raise AssertionError(f"wrk at {url}: {found}")
    return Closed(found["requests"] / found["seconds"], found["p50"], found["p99"])
