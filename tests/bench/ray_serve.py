"""What Ray Serve costs: .venv-ray/bin/python -m tests.bench.ray_serve [SECONDS [ROUNDS]]

One replica behind Ray Serve beside `embedserve serve` with as many lanes, on the same machine, in
turns: with Ray's own proxy, with HAProxy in its place, and with Ray's throughput options besides.
Needs wrk and an idle machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from tests.bench import corpus, load, wrk
from tests.bench.corpus import BATCH, BATCH_CLIENTS, CLIENTS, MODEL
from tests.bench.figures import percentile

ROOT = Path(__file__).parent.parent.parent
VARIANTS = {
    "Ray's proxy": {},
    "HAProxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1"},
    "HAProxy, throughput options": {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    },
}
CORES = len(os.sched_getaffinity(0))
PATH = "/v1/embeddings"


def one_client(port: int, bodies: Path, seconds: int) -> dict[str, float]:
    run = wrk.run(port, PATH, bodies, 1, seconds)
    return {"p50 ms": run.p50 * 1000, "p99 ms": run.p99 * 1000}


def many_clients(port: int, bodies: Path, seconds: int) -> dict[str, float]:
    run = wrk.run(port, PATH, bodies, CLIENTS, seconds)
    return {"requests/s": run.rate, "p50 ms": run.p50 * 1000, "p99 ms": run.p99 * 1000}


def batches(port: int, bodies: Path, seconds: int) -> dict[str, float]:
    requests = [
        load.Request(load.request(json.dumps({"input": texts}).encode()), len(texts))
        for texts in corpus.batches()
    ]
    run = asyncio.run(load.for_seconds(port, load.endless(requests), BATCH_CLIENTS, seconds))
    return {"texts/s": run.texts, "p50 ms": percentile(run.latencies, 50) * 1000}


LOADS: dict[str, Callable[[int, Path, int], dict[str, float]]] = {
    "1 client, one short text": one_client,
    f"{CLIENTS} clients, one short text": many_clients,
    f"{BATCH_CLIENTS} clients, {BATCH} texts": batches,
}


@contextmanager
def plain() -> Iterator[int]:
    """`embedserve serve`: its port."""
    flags = ["--port", "0", "--model", MODEL, "--lanes", str(CORES), "--no-access-log"]
    command = [sys.executable, "-m", "embedserve", "serve", *flags]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = next(filter(None, (re.search(r"serving .*:(\d+) ", s) for s in process.stderr)))
        try:
            yield int(found[1])
        finally:
            process.terminate()


@contextmanager
def behind_ray() -> Iterator[int]:
    """One replica of as many cores behind one front: the proxy's port."""
    from tests.ray.serving import serving

    args = {
        "models": str(ROOT / "models.toml"),
        "artifacts": str(ROOT / "artifacts"),
        "model": [MODEL],
        "settings": {"access_log": False},
    }
    deployment = {"name": MODEL, "ray_actor_options": {"num_cpus": CORES}}
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, serving(Path(folder)) as made:
        made.deploy("bench", args, deployment, route_prefix="/")
        yield int(made.url.rpartition(":")[2])


def measure(seconds: int, rounds: int) -> dict[str, list[dict[str, dict[str, float]]]]:
    """Each load's figures by round, of the plain server and of Ray Serve."""
    found: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in LOADS}
    with plain() as own, behind_ray() as ray, tempfile.NamedTemporaryFile("w") as bodies:
        bodies.writelines(json.dumps({"input": text}) + "\n" for text in corpus.short())
        bodies.flush()
        ports = {"plain": own, "ray": ray}
        for port in ports.values():
            many_clients(port, Path(bodies.name), 3)
        for number in range(rounds):
            order = list(ports.items())[:: 1 if number % 2 else -1]
            for name, run in LOADS.items():
                found[name].append(
                    {who: run(port, Path(bodies.name), seconds) for who, port in order}
                )
    return found


def table(variant: str, found: dict[str, list[dict[str, dict[str, float]]]]) -> list[str]:
    """Rows: medians, and the ratio round by round."""
    rows = []
    for load_name, rounds in found.items():
        for figure in rounds[0]["plain"]:
            own, ray = (median(r[who][figure] for r in rounds) for who in ("plain", "ray"))
            ratio = median(r["ray"][figure] / r["plain"][figure] for r in rounds)
            rows.append(
                f"| {variant} | {load_name} | {figure} | {own:.1f} | {ray:.1f} | {ratio:.2f} |"
            )
    return rows


def main(seconds: str = "8", rounds: str = "5") -> None:
    """Measure each variant in a process of its own: Ray reads its options when it is imported."""
    print(
        "| way | load | figure | embedserve serve | Ray Serve | ratio |\n|---|---|---|---|---|---|"
    )
    for variant, environment in VARIANTS.items():
        command = [sys.executable, "-m", "tests.bench.ray_serve", "--measure", seconds, rounds]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        print("\n".join(table(variant, json.loads(done.stdout.splitlines()[-1]))), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(int(sys.argv[2]), int(sys.argv[3]))))
    else:
        main(*sys.argv[1:])
