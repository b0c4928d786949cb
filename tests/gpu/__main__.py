"""Run the steps, each in a process and within its limit: python -m tests.gpu OUT [STEP ...]

Writes OUT/report.json after each step, and OUT/log.txt. `python -m tests.gpu.step` is one step.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.gpu.steps import STEPS

# For all steps together, unless GPU_LIMIT says other: the machine is lent for a time.
LIMIT = 570.0  # seconds


def main(out: str, *names: str) -> int:
    """The status is 1 when a step failed or was cut off."""
    unknown = sorted(set(names) - set(STEPS))
    if unknown:
        print(f"no such step: {', '.join(unknown)}; one of {', '.join(STEPS)}", file=sys.stderr)
        return 64
    until = time.monotonic() + float(os.environ.get("GPU_LIMIT", LIMIT))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": " ".join(["python -m tests.gpu", *names]),
        "provider": os.environ.get("GPU_PROVIDER", "cuda"),
        "steps": {},
    }
    for name in names or STEPS:
        report["steps"][name] = run(name, folder, until)
        (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    ended = {name: step["ended"] for name, step in report["steps"].items()}
    print(json.dumps(ended))
    return int(any(how != "done" for how in ended.values()))


def run(name: str, folder: Path, until: float) -> dict[str, Any]:
    """Run one step; what it found, how it ended, and how long it took."""
    limit = min(STEPS[name].seconds, until - time.monotonic())
    found_path = folder / "step.json"
    found_path.unlink(missing_ok=True)
    print(f"== {name}: {STEPS[name].shows}", flush=True)
    if limit <= 0:
        return {"ended": "not begun: no time was left"}
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.gpu.step", name, str(found_path), str(folder / "log.txt")],
        start_new_session=True,
    )
    try:
        status = process.wait(limit)
        ended = "done" if status == 0 else f"failed with status {status}"
    except subprocess.TimeoutExpired:
        ended = f"cut off after {limit:.0f} s"
    finally:  # its servers and clients, too
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    found = json.loads(found_path.read_text()) if found_path.exists() else {}
    found_path.unlink(missing_ok=True)
    return {"ended": ended, "seconds": round(time.monotonic() - begin, 1), "found": found}


if __name__ == "__main__":
    arguments: Sequence[str] = sys.argv[1:]
    if not arguments:
        sys.exit("usage: python -m tests.gpu OUT [STEP ...]")
    sys.exit(main(*arguments))
