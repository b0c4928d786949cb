"""Another process takes the device's memory: what is answered, what lives, what comes after."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.gpu import texts
from tests.gpu.place import FP16, Place
from tests.gpu.results import Results
from tests.gpu.server import Server, refused, serving
from tests.gpu.steps.memory import used_mb

# Takes the device's memory but for so many MB, says so, and keeps it until its input ends.
HOG = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
left = int(sys.argv[1]) * 2**20
kept = []
while (free := torch.cuda.mem_get_info()[0]) > left + 2**20:
    try:
        kept.append(torch.empty(min(free - left, 2**32), dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError:
        break
print("ready", flush=True)
sys.stdin.read()
"""
LEFT_TO_SERVER, LEFT_AT_START = 600, 100  # MB
TOKENS = 1_000_000


@contextmanager
def hog(left: int) -> Iterator[None]:
    """The memory is taken meanwhile."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOG, str(left)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError("the device's memory could not be taken")
        yield
    finally:
        process.stdin.close()
        process.wait(20)


def run(place: Place, results: Results, log: Path) -> None:
    """A pass asks for more than there is; then a server starts where there is nothing."""
    if place.provider != "cuda":
        results.add(skipped="there is no device memory to take")
        return
    flags = ("--tokens-per-pass", str(TOKENS), "--lanes", "2")
    with serving(place, FP16, *flags, log=log) as server:
        with hog(LEFT_TO_SERVER):
            results.add(used=used_mb(), beside_another=_answers(server))
            results.add(one_short_text=server.embed(["a short text"])[0])
            results.add(live=server.ask("/livez")[0])
        results.add(after=_answers(server), used_after=used_mb())
    with hog(LEFT_AT_START):
        results.add(start_without_memory=refused(place, FP16))


def _answers(server: Server) -> dict[str, object]:
    """Statuses of big requests of long texts, and what the last refusal says."""
    statuses: Counter[int] = Counter()
    said: object = None
    for request in texts.requests("long", server.place.count(2048), 2):
        status, answer = server.embed(request)
        statuses[status] += 1
        said = answer.get("error") if status != 200 else said
    return {"statuses": dict(statuses), "refusal": said}
