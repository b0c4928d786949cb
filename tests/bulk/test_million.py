"""A million rows: memory is that of a few chunks, from the first fifth to the end."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests import tiny
from tests.bulk.files import command
from tests.conftest import ROOT, environment
from tests.faults.watched import resident

ROWS = 1_000_000
CHUNK_ROWS = 4096
SEED = 20261124
LOOK_SECONDS = 0.02  # JSON Lines are joined in two tenths of a second
CHUNKS = -(-ROWS // CHUNK_ROWS)
# Up to which part; once all are there they are joined.
PHASES = (
    ("first fifth", -1, CHUNKS // 5),
    ("rest", CHUNKS // 5, CHUNKS - 1),
    ("joining", CHUNKS - 1, CHUNKS),
)
# What a writer takes for itself, whatever the number of rows.
JOINING = {".parquet": 150_000_000}


def corpus(path: Path, rows: int) -> Path:
    """Short rows, written as they are drawn."""
    draw = random.Random(SEED)  # noqa: S311  # the same every time
    with path.open("w") as file:
        for number in range(rows):
            words = " ".join(draw.choices("abcd", k=draw.randint(1, 6)))
            file.write(f'{{"id": {number}, "text": "{words}"}}\n')
    return path


class Point(NamedTuple):
    """What was seen of a running command: chunks that are finished, and bytes of memory."""

    parts: int
    resident: int


def memory(process: subprocess.Popen[str], parts: Path) -> Iterator[Point]:
    """Look many times a second until the process ends."""
    while process.poll() is None:
        with contextlib.suppress(OSError, AssertionError):  # it may end meanwhile
            yield Point(sum(1 for _ in parts.glob("*.part")), resident(process.pid))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_SECONDS)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".npy", ".jsonl", ".parquet"])
def test_memory(tmp_path: Path, tiny_artifacts: Path, suffix: str) -> None:
    """Resident memory after a fifth is that at the end, within 20 MB or 3 %."""
    source, out = corpus(tmp_path / "in.jsonl", ROWS), tmp_path / f"out{suffix}"
    begin = time.monotonic()
    process = subprocess.Popen(
        command(
            *(source, out, "--models", tiny_artifacts.parent / "models.toml"),
            *("--artifacts", tiny_artifacts, "--model", "tiny"),
            *("--chunk-rows", str(CHUNK_ROWS)),
        ),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    seen = list(memory(process, tmp_path / f"out{suffix}.parts"))
    _, said = process.communicate()
    assert process.returncode == 0, said
    most = {
        name: max(p.resident for p in seen if low < p.parts <= high) for name, low, high in PHASES
    }
    print(
        suffix,
        {name: f"{size / 1e6:.1f} MB" for name, size in most.items()},
        f"{time.monotonic() - begin:.0f} s",
    )
    allowed = max(20_000_000, 3 * most["first fifth"] // 100)
    assert most["rest"] <= most["first fifth"] + allowed
    assert most["joining"] <= most["first fifth"] + JOINING.get(suffix, allowed)
    if suffix == ".npy":
        found = np.load(out, mmap_mode="r")
        assert found.shape == (ROWS, tiny.HIDDEN)
        assert np.isfinite(found).all()
    elif suffix == ".parquet":
        assert pq.ParquetFile(out).metadata.num_rows == ROWS
    else:
        with out.open("rb") as lines:
            assert sum(1 for _ in lines) == ROWS
