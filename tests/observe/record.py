"""What each panel shows over two minutes of traffic: python -m tests.observe.record FILE.

A server of the real all-MiniLM-L6-v2 and of the tiny model, scraped by a real Prometheus: queries
alone, then beside bulk, then more than it can do with mistakes among it, then queries alone.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

from tests import programs
from tests.faults.serving import serving, until
from tests.observe import dashboard, load
from tests.observe.load import Kind
from tests.observe.prometheus import Prometheus, scraping

STEP = 1.0  # seconds
WINDOW = "5s"  # ten scrapes
FLAGS = ("--max-wait", "1", "--cache-mb", "64", "--max-inputs", "256", "--no-access-log")
# Seconds, and how many clients of each kind.
PHASES: tuple[tuple[float, dict[Kind, int]], ...] = (
    (25.0, {load.query: 2}),
    (35.0, {load.query: 2, load.bulk: 2, load.small: 1}),
    (35.0, {load.query: 3, load.bulk: 12, load.small: 1, load.mistaken: 1, load.leaving: 1}),
    (25.0, {load.query: 2}),
)


def record(path: Path) -> None:
    """Bring about the traffic and write what was seen of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = load.artifacts(folder)
        with (
            serving(made, folder / "log", *FLAGS) as server,
            scraping(folder, server.url.removeprefix("http://")) as prometheus,
        ):
            until(lambda: prometheus.number("embedserve_ready") == 1)
            start = time.time()
            for number, (seconds, kinds) in enumerate(PHASES):
                asyncio.run(load.mixed(server.address[1], seconds, kinds, number))
            seen = {"start": start, "end": time.time()}
            panels = _panels(prometheus, start, seen["end"])
    path.write_text(json.dumps({**seen, "panels": panels}), encoding="utf-8")


def _panels(prometheus: Prometheus, start: float, end: float) -> dict[str, object]:
    found: dict[str, object] = {}
    for panel in dashboard.panels():
        for query in panel.queries:
            expression = dashboard.expand(query.expression, WINDOW)
            series = (
                prometheus.query(expression, time=end)
                if query.instant
                else prometheus.query_range(expression, start, end, STEP)
            )
            rows = [{"labels": s.labels, "points": s.points} for s in series]
            found[f"{panel.number} {query.name}"] = rows
    return found


if __name__ == "__main__":
    if programs.find("prometheus") is None:
        sys.exit("needs Debian's package prometheus (apt-get install prometheus)")
    record(Path(sys.argv[1]))
