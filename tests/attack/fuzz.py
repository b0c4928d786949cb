"""python -m tests.attack.fuzz SECONDS [SEED]: drawn HTTP and JSON against a real server, watched.

It fails with what the server answered, with its memory, its log, its end, or another client's wait.
build/fuzz keeps the inputs whose answers were new, and those that failed: forms as JSON, which
`python -m tests.attack.fuzz FILE` sends again.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from random import SystemRandom
from tempfile import TemporaryDirectory
from typing import Any

from tests.attack.forms import LIVEZ, loaded
from tests.attack.fuzzing import CONNECTIONS
from tests.attack.pauses import found, watching
from tests.attack.watch import MB, asking, attack, attacked, longest
from tests.conftest import ROOT
from tests.faults import watched
from tests.faults.serving import Served

FOLDER = ROOT / "build" / "fuzz"
# Some inputs have a key, and the server does their work on the cores that the fuzzer shares: so
# twice what strangers may cost others, and what took longer than that is counted.
LIVEZ_SECONDS, STRANGERS_SECONDS = 0.5, 0.25
_LOOK_SECONDS = 0.2
_WRONG = re.compile(r".*(?:Traceback|Z (?:ERROR|CRITICAL) |never retrieved|Exception in ).*")


def fuzz(
    seconds: float, seed: str, folder: Path, livez: float = LIVEZ_SECONDS
) -> tuple[str, list[str]]:
    """Fuzz a server of its own for so long; a line of figures, and what failed.

    `livez`: the seconds that another client's /livez may take while the machine runs.
    """
    with TemporaryDirectory() as own, attacked(Path(own), "--no-access-log") as server:
        return _watched(server, seconds, seed, folder, livez)


def _watched(
    server: Served, seconds: float, seed: str, folder: Path, livez: float
) -> tuple[str, list[str]]:
    pid, most = server.process.pid, watched.bound(server.log)
    watched.forget_peak(pid)
    words = ("-m", "tests.attack.fuzzing", str(server.address[1]), str(seconds), seed, str(folder))
    failures: list[str] = []
    peak = looked = end = 0
    start, pauses = time.monotonic(), server.log.parent / "pauses"
    with watching(pauses), asking(server.address[1], LIVEZ, 0.02, failures) as waits:
        fuzzer = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, cwd=ROOT)
        while not failures and fuzzer.poll() is None:
            time.sleep(_LOOK_SECONDS)
            if server.process.poll() is None:
                peak = watched.peak(pid)
            # Waits up to the look before this one: a pause is written when it has ended.
            late = longest(waits[looked:end], found(pauses))
            looked, end = end, len(waits)
            failures += _failures(server, peak, most, late, livez)
            if time.monotonic() > start + seconds + 60:
                failures.append("the fuzzer does not end")
        if failures:
            fuzzer.terminate()
            failures.append(f"one of the last inputs did it: {folder}/last-*-seed-{seed}.json")
        output = fuzzer.communicate()[0]
        elapsed = time.monotonic() - start
    done: dict[str, Any] = json.loads(output) if output else {"failures": []}
    inputs, stood = done.get("inputs", 0), found(pauses)
    late = sum(longest([wait], stood) > STRANGERS_SECONDS for wait in waits)
    if not failures:
        failures += _failures(server, peak, most, longest(waits[looked:], stood), livez)
        if not output:
            failures.append(f"the fuzzer ended with {fuzzer.returncode}")
    line = (
        f"seed {seed}: {inputs} inputs ({inputs / elapsed:.0f} a second, "
        f"{done.get('sent', 0) / MB:.0f} MB, {done.get('kept', 0)} with new answers), "
        f"answers {done.get('statuses')}, memory {peak / MB:.0f} MB of {most / MB:.0f}, "
        f"/livez {len(waits)} times, {late} over {STRANGERS_SECONDS} s, "
        f"at most {longest(waits, stood) * 1e3:.0f} ms"
        f" ({longest(waits) * 1e3:.0f} with the machine's pauses: {len(stood)}, "
        f"{longest(stood) * 1e3:.0f} ms at most)"
    )
    return line, failures + done["failures"]


def _failures(server: Served, peak: int, most: int, wait: float, livez: float) -> list[str]:
    """What is wrong now."""
    found = []
    if server.process.poll() is not None:
        found.append(f"the server ended with {server.process.returncode}")
    if peak > most:
        found.append(f"{peak / MB:.0f} MB of memory; {most / MB:.0f} are the bound")
    if wait > livez:
        found.append(f"/livez took {wait:.3f} s; {livez} at most")
    if wrong := _WRONG.search(server.log.read_text()):
        found.append(f"in the server's log: {wrong[0][:5_000]}")
    return found


def _again(path: Path) -> None:
    """Send a kept form from many connections for a second, and say what was seen."""
    with TemporaryDirectory() as own, attacked(Path(own), "--no-access-log") as server:
        print(attack(server, loaded(path.read_text()), CONNECTIONS, 1))
        print(server.log.read_text())


def main() -> None:
    """Fuzz, or send a file again; status 1 for failures."""
    if not re.fullmatch(r"[\d.]+", sys.argv[1]):
        _again(Path(sys.argv[1]))
        return
    seed = sys.argv[2] if len(sys.argv) > 2 else str(SystemRandom().randrange(10**6))
    line, failures = fuzz(float(sys.argv[1]), seed, FOLDER)
    print(line)
    for failure in failures:
        print(failure)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
