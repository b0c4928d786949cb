"""A file of texts embedded without a server: `embedserve embed`, texts a second."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path

from tests.gpu import texts
from tests.gpu.place import FP16, Place
from tests.gpu.results import Results
from tests.gpu.server import PATIENCE

# Two sizes of a file: what starting takes is in both, and so not in their difference.
COUNTS = {"short": (100_000, 300_000), "mixed": (50_000, 150_000), "long": (10_000, 40_000)}


def run(place: Place, results: Results, log: Path) -> None:
    """By what the longer file takes more."""
    for kind, counts in [*COUNTS.items()][: place.count(len(COUNTS))]:
        results.attempt(kind, _of, place, kind, counts, log)


def _of(place: Place, kind: str, counts: tuple[int, int], log: Path) -> dict[str, float]:
    few, many = (place.count(count) for count in counts)
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "texts.jsonl"
        seconds = []
        for count in (few, many):
            with given.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps({"text": t}) + "\n" for t in texts.many(kind, count))
            seconds.append(_embedded(place, given, log))
    more = max(seconds[1] - seconds[0], 1e-3)
    return {"texts a second": round((many - few) / more), "seconds of the longer": seconds[1]}


def _embedded(place: Place, given: Path, log: Path) -> float:
    """The seconds it takes, with start and end."""
    made = given.with_suffix(".npy")
    command = place.command("embed", str(given), str(made), "--model", FP16, "--overwrite")
    begin = time.perf_counter()
    with log.open("a") as file:
        subprocess.run(
            [*command, "--provider", place.provider],
            stdout=file,
            stderr=file,
            env=place.environment(),
            timeout=PATIENCE,
            check=True,
        )
    return time.perf_counter() - begin
