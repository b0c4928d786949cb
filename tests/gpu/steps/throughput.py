"""Texts a second through HTTP, by tokens a pass and lanes; which thread is the limit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tests.gpu.load import WARM_UP, Load, Loading
from tests.gpu.place import FP16, FP32, Place
from tests.gpu.results import Results
from tests.gpu.server import Server, serving
from tests.gpu.steps.versions import nvidia_smi

LOADS = {
    "one short text": Load("short", 1, 64),
    "32 short texts": Load("short", 32, 64),
    "32 mixed texts": Load("mixed", 32, 64),
    "32 long texts": Load("long", 32, 64),
}
# Model, tokens a pass, lanes: first what is default, then each alone is changed.
SETTINGS = (
    (FP16, 16_384, 2),
    (FP32, 16_384, 2),
    (FP16, 65_536, 2),
    (FP16, 4_096, 2),
    (FP16, 16_384, 1),
    (FP16, 16_384, 4),
    (FP16, 131_072, 2),
    (FP16, 16_384, 3),
)


def run(place: Place, results: Results, log: Path) -> None:
    """One server a setting."""
    for model, tokens, lanes in SETTINGS[: place.count(len(SETTINGS))]:
        flags = ("--tokens-per-pass", str(tokens), "--lanes", str(lanes))
        name = f"{model}, {tokens} tokens, {lanes} lanes"
        results.attempt(name, _of, place, model, flags, log)
    results.attempt("without the passes", _of, place, FP16, (), log, "tests.gpu.without_gpu")


def _of(
    place: Place, model: str, flags: Sequence[str], log: Path, module: str = "embedserve"
) -> dict[str, object]:
    found: dict[str, object] = {}
    with serving(place, model, *flags, log=log, module=module) as server:
        for name, full in LOADS.items():
            load = full._replace(size=place.count(full.size), clients=place.count(full.clients))
            found[name] = _measure(place, server, load)
    return found


def _measure(place: Place, server: Server, load: Load) -> dict[str, object]:
    loading = Loading(place, server.port, server.model, load, place.seconds)
    time.sleep(WARM_UP + place.seconds / 2)  # the clients have started, and are warm
    before, begin = server.threads(), time.perf_counter()
    time.sleep(place.seconds / 4)
    utilization = nvidia_smi("utilization.gpu")
    spent = time.perf_counter() - begin
    after = server.threads()
    shares = {i: (after[i] - before.get(i, 0.0)) / spent for i in after}
    loop = shares.pop(server.process.pid)
    rate = loading.rate()
    return {
        "texts": round(rate.texts),
        "requests": round(rate.requests),
        "p50_ms": round(1e3 * rate.p50, 2),
        "event_loop": round(loop, 2),
        "busiest_threads": [round(s, 2) for s in sorted(shares.values(), reverse=True)[:5]],
        "all_threads": round(sum(shares.values()), 2),
        "gpu_percent": utilization,
    }
