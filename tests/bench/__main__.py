"""All peers side by side: python -m tests.bench [--quick] [--render]

Prints README's two tables. The whole run also writes results.json beside this file and the chart;
--quick is one short round of embedserve and raw onnxruntime, and writes nothing. --render prints
and draws what results.json has.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
from pathlib import Path
from typing import Any

from tests.bench import bars, chart, figures, machine, peers, report, scenarios
from tests.bench.rounds import Plan, Rounds

RESULTS = Path(__file__).with_name("results.json")
CHART = peers.ROOT / "docs" / "bench.svg"

WHOLE = Plan(rounds=5, starts=3, seconds=6, choosing=1.0)
QUICK = Plan(rounds=1, starts=1, seconds=4, choosing=0.2)


def run(plan: Plan, quick: bool) -> dict[str, Any]:
    """Measure everything; results as they are written."""
    table = peers.table(quick)
    if not quick and not peers.FOLDER.exists():
        command = [".venv-bench/bin/python", "-m", "tests.bench.checkpoint", str(peers.FOLDER)]
        subprocess.run(command, cwd=peers.ROOT, check=True)
    scenarios.prepare()
    rounds = Rounds(plan, list(table.values()))
    try:
        rounds.start()
        difference = rounds.compare()
        chosen = rounds.warm()
        rounds.measure()
    finally:
        rounds.stop()
    facts = {
        "command": "make bench-quick" if quick else "make bench",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rounds": plan.rounds,
        "machine": machine.facts(),
        "versions": machine.versions(),
        "difference": figures.rounded(difference),
        "raw": chosen,
        "generator": {k: figures.rounded(v, 2) for k, v in rounds.generator.items()},
        "idle_peers_cpu_seconds": figures.rounded(rounds.idle),
    }
    return report.results(rounds.figures, bars.judge(rounds.figures), facts)


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--quick", action="store_true", help="one short round without torch")
    parser.add_argument("--render", action="store_true", help="print and draw the last results")
    wanted = parser.parse_args()
    found = (
        json.loads(RESULTS.read_text())
        if wanted.render
        else run(QUICK if wanted.quick else WHOLE, wanted.quick)
    )
    if not wanted.quick:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        CHART.parent.mkdir(exist_ok=True)
        CHART.write_text(chart.svg(found))
    print(report.markdown(found))


if __name__ == "__main__":
    main()
