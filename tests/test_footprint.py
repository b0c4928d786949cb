"""The most memory a server may use: what the settings allow, by construction."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from embedserve import footprint, host
from embedserve.host import Known
from embedserve.settings import Settings
from tests import tiny
from tests.conftest import Start

MINILM = tiny.manifest(hidden_size=384, max_tokens=256)
LONG = tiny.manifest(hidden_size=768, max_tokens=8192, masked_up_to=512)


def most(lanes: int = 2, tokens: int = 256, *, manifest: object = MINILM, **changed: int) -> int:
    settings = replace(Settings(), **changed)  # type: ignore[arg-type]  # numbers alone
    return footprint.estimate(0, [manifest], lanes, tokens, settings).most  # type: ignore[list-item]


@pytest.mark.parametrize("setting", ["max_pending_mb", "cache_mb"])
def test_megabytes_count_in_full(setting: str) -> None:
    """What a setting allows is in the sum."""
    assert most(**{setting: 1200}) - most(**{setting: 200}) == 1_000_000_000


def test_the_largest_request_counts() -> None:
    """It is taken when it is alone, though it is more than max_pending_mb: so is it counted."""
    wide = replace(MINILM, dimension=1000)
    small = most(manifest=wide, max_pending_mb=1, max_body_bytes=2_000_000, max_inputs=10)
    large = most(manifest=wide, max_pending_mb=1, max_body_bytes=5_000_000, max_inputs=110)
    assert large - small == 3 * 3_000_000 + 100 * 1000 * 20


def test_lanes_and_passes_count() -> None:
    """Each lane may run the largest pass at once: of the budget, or of the longest text."""
    assert most(4) - most(2) == most(6) - most(4) > 0
    assert most(tokens=16_384) > most(tokens=256) + 16_000 * 384 * 4
    assert most(manifest=LONG) > most() + 2 * 8192 * 768 * 4


def test_static_embeddings_are_rows_alone() -> None:
    """Without a limit the largest text is that of a request, and there is no attention."""
    bag = tiny.manifest(hidden_size=256, max_tokens=2**31 - 1, pooling=("bag",))
    less = most(manifest=bag, max_request_tokens=100_000)
    assert most(manifest=bag, max_request_tokens=200_000) - less == 2 * 100_000 * 256 * 4 * 2


def test_connections_count() -> None:
    """A head may be on its way on each."""
    assert most(max_connections=10_000) - most(max_connections=1_000) >= 9_000 * 32_768


def test_resident_is_the_kernel_s() -> None:
    """As /proc says it, and 0 elsewhere."""
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    said = int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
    assert abs(host.resident() - said) < 20_000_000
    assert host.resident(Path("/no/such/root")) == 0


def test_more_than_there_is() -> None:
    """What to lower is said where the limit may be passed, and only there."""
    found = footprint.estimate(200_000_000, [MINILM], 2, 256, Settings())
    said = found.advice(Known(512_000_000, "cgroup v2 memory.max"))
    assert said is not None
    assert "512 MB there are (cgroup v2 memory.max)" in said
    assert "max_connections" in said
    assert found.advice(Known(64_000_000_000, "")) is None
    assert found.advice(None) is None


def test_printed_at_start(start: Start, tiny_artifacts: Path) -> None:
    """One line with its parts."""
    server = start(tiny_artifacts.parent / "models.toml", tiny_artifacts, "--cache-mb", "7")
    line = next(s for s in server.log.read_text().splitlines() if "memory: " in s)
    found = re.search(r"memory: (\d+) MB loaded, at most (\d+) MB .*cache 7", line)
    assert found, line
    assert 20 < int(found[1]) < 300
    assert int(found[2]) > int(found[1]) + 256
