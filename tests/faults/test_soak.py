"""Resident memory that stays: mixed traffic for long, and a build that leaks and is caught."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import MINILM, ROOT, Server, Start
from tests.faults import soak

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


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])
