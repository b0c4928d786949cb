"""Resident memory that stays: mixed traffic for long, and a build that leaks and is caught."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.conftest import MINILM, ROOT, Server, Start
from tests.faults import soak
from tests.faults.serving import serving

REQUESTS = 100_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_100_000_mixed_requests(start: Start) -> None:
    """Memory, descriptors and threads as before; 5 % bad, 5 % leaving; every row bit-identical."""
    flags = ("--model", MINILM, "--no-access-log")
    server = start(ROOT / "models.toml", ROOT / "artifacts", *flags)
    found = asyncio.run(soak.run(port_of(server), server.process.pid, REQUESTS, seed=1))
    print(f"soak: {found}, growth {found.growth / 1e6:.1f} of {found.allowed / 1e6:.0f} MB")
    assert not [kind for kind in found.counts if kind.startswith("wrong")]
    assert found.growth <= found.allowed
    assert found.descriptors[0] == found.descriptors[1]
    assert found.threads[0] == found.threads[1]
    assert found.counts["left"] > REQUESTS // 30
    assert found.counts["refused"] > REQUESTS // 30
    assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_build_that_leaks_is_caught(tmp_path: Path) -> None:
    """The same check on a server that keeps 4 KB of each request fails after 10,000."""
    runner = ("tests.faults.altered", "leaking")
    flags = ("--model", MINILM, "--no-access-log")
    with serving(ROOT / "artifacts", tmp_path / "log", *flags, runner=runner) as server:
        port = server.address[1]
        found = asyncio.run(soak.run(port, server.process.pid, REQUESTS // 10, seed=2))
    print(f"leaking: growth {found.growth / 1e6:.1f} MB, {found.allowed / 1e6:.0f} are allowed")
    assert found.growth > found.allowed


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])
