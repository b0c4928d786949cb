"""All peers side by side: python -m tests.bench [--quick | --short | --render]

Prints the tables that docs/benchmarks.md shows. The whole run, and a --short one of a single
round, also write results.json beside this file, the chart and the page. --quick is one short round
of embedserve and raw onnxruntime, and writes nothing. --render writes the page from results.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from tests.bench import bars, chart, figures, machine, peers, report, scenarios
from tests.bench.rounds import Plan, Rounds

RESULTS = Path(__file__).with_name("results.json")
CHART = peers.ROOT / "docs" / "bench.svg"
PAGE = peers.ROOT / "docs" / "benchmarks.md"

PLANS = {
    "make bench": Plan(rounds=5, starts=3, seconds=6, choosing=0.6),
    "python -m tests.bench --short": Plan(rounds=1, starts=1, seconds=3, choosing=0.1),
    "make bench BENCH_FLAGS=--quick": Plan(rounds=1, starts=1, seconds=4, choosing=0.1),
}


def run(command: str, quick: bool) -> dict[str, Any]:
    """Measure everything; results as they are written."""
    table = peers.table(quick)
    if not quick and not peers.FOLDER.exists():
        program = [".venv-bench/bin/python", "-m", "tests.bench.checkpoint", str(peers.FOLDER)]
        subprocess.run(program, cwd=peers.ROOT, check=True)
    scenarios.prepare()
    rounds = Rounds(PLANS[command], list(table.values()))
    try:
        rounds.start()
        difference = rounds.compare()
        chosen = rounds.warm()
        rounds.measure()
    finally:
        rounds.stop()
    facts = {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rounds": rounds.plan.rounds,
        "seconds": rounds.plan.seconds,
        "machine": machine.facts(),
        "versions": machine.versions(),
        "difference": figures.rounded(difference),
        "raw": chosen,
        "generator": {k: figures.rounded(v, 2) for k, v in rounds.generator.items()},
        "others": figures.rounded(fmean(rounds.others), 2),
        "idle_peers_cpu_seconds": figures.rounded(rounds.idle),
    }
    return report.results(rounds.figures, bars.judge(rounds.figures), facts)


def write(found: Mapping[str, Any]) -> None:
    """results.json, the chart, the page's section."""
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    CHART.parent.mkdir(exist_ok=True)
    CHART.write_text(chart.svg(found), encoding="utf-8")
    PAGE.write_text(report.into(PAGE.read_text("utf-8"), found), encoding="utf-8")


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--quick", action="store_true", help="one short round without torch")
    kinds.add_argument("--short", action="store_true", help="one short round of all peers")
    kinds.add_argument("--render", action="store_true", help="write and print the last results")
    wanted = parser.parse_args()
    # Ended from outside, it still ends the peers, which may be paused.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if not wanted.render and shutil.which("wrk") is None:
        sys.exit("wrk is not installed: it is a package of most systems")
    whole, short, quick = PLANS
    if wanted.render:
        found = json.loads(RESULTS.read_text())
    else:
        found = run(quick if wanted.quick else short if wanted.short else whole, wanted.quick)
    if not wanted.quick:
        write(found)
    print(report.markdown(found))


if __name__ == "__main__":
    main()
