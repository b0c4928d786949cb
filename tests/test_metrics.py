"""What /metrics says besides counts: limits, connections, and refusals without a key."""

from __future__ import annotations

import re
import socket
from contextlib import ExitStack
from pathlib import Path

import httpx

from embedserve.system import host
from tests.conftest import Server, Start
from tests.faults.serving import until

KEY = "a-key-of-the-tests"
LIMITS = {
    "lanes": ("--lanes", "3"),
    "max_wait_seconds": ("--max-wait", "2.5"),
    "max_pending_bytes": ("--max-pending-mb", "7"),
    "max_connections": ("--max-connections", "50"),
}


def sample(server: Server, name: str, **headers: str) -> float:
    """The value of one sample, named as in /metrics."""
    with server.client() as client:
        lines = client.get("/metrics", headers=headers).text.splitlines()
    return next(float(s.rpartition(" ")[2]) for s in lines if s.startswith(f"embedserve_{name} "))


def test_limits(start: Start, tiny_artifacts: Path) -> None:
    """Each limit that something is measured against is a gauge, in the unit of what it limits."""
    flags = [word for flag in LIMITS.values() for word in flag]
    server = start(tiny_artifacts.parent / "models.toml", tiny_artifacts, *flags)
    found = {name: sample(server, name) for name in LIMITS}
    assert found == {
        "lanes": 3,
        "max_wait_seconds": 2.5,
        "max_pending_bytes": 7_000_000,
        "max_connections": 50,
    }


def test_memory(server: Server) -> None:
    """The bound is the one that was printed at start, the limit is what a process may have here."""
    printed = re.search(r"at most (\d+) MB", server.log.read_text())
    assert printed is not None
    assert round(sample(server, "memory_bound_bytes") / 1e6) == int(printed[1])
    known = host.read().memory
    assert sample(server, "memory_limit_bytes") == (known.value if known else float("inf"))


def test_connections(start: Start, tiny_artifacts: Path) -> None:
    """Those that are open now, whether they ever asked for anything; the one that asks is one."""
    server = start(tiny_artifacts.parent / "models.toml", tiny_artifacts)
    address = httpx.URL(server.url)
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(socket.create_connection((address.host, address.port or 0)))
        until(lambda: sample(server, "connections") == 6)
    until(lambda: sample(server, "connections") == 1)


def test_ready(server: Server) -> None:
    """A server that serves is ready and live; tests/faults has the others."""
    assert sample(server, "ready") == sample(server, "live") == 1


def test_no_key(start: Start, tiny_artifacts: Path) -> None:
    """A request without a key is counted among the refusals: it reaches no model."""
    models = tiny_artifacts.parent / "models.toml"
    server = start(models, tiny_artifacts, EMBEDSERVE_API_KEYS=KEY)
    name, key = 'refusals_total{code="invalid_api_key"}', {"authorization": f"Bearer {KEY}"}
    assert sample(server, name, **key) == 0
    assert server.embed(model="tiny", input="a").status_code == 401
    assert sample(server, name, **key) == 1
