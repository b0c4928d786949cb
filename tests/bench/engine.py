"""How fast the engine is: python -m tests.bench.engine [PATH-TO-REPLACED-SERVICE'S-PYTHON]

embedserve on the real all-MiniLM-L6-v2 beside raw onnxruntime with the best schedule known (texts
sorted by length, two threads on one session, no server), and, where a Python with
sentence-transformers, starlette and uvicorn is given, beside the service it replaces. Same texts,
in turns, in one run; medians and ratios count, not figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from embedserve import artifact
from embedserve.backend import OnnxBackend
from embedserve.batching import pad
from embedserve.tokenization import Tokenizer
from tests.bench.corpus import SHORT, mixed
from tests.bench.load import Run, drive, request

ROOT = Path(__file__).parent.parent.parent
MODEL = "all-MiniLM-L6-v2"
TOKENS_PER_PASS = 256
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Scenario:
    """Clients that each send the same kind of request, one after the other."""

    name: str
    requests: list[bytes]
    texts: list[list[str]]
    clients: int
    count: int


def scenario(name: str, texts: list[list[str]], clients: int, count: int) -> Scenario:
    """Build the requests' bytes once."""
    bodies = [json.dumps({"model": MODEL, "input": t}).encode() for t in texts]
    return Scenario(name, [request(body) for body in bodies], texts, clients, count)


def scenarios() -> list[Scenario]:
    """The issue's three."""
    bulk = mixed(32 * 16)
    batches = [bulk[i : i + 32] for i in range(0, len(bulk), 32)]
    short = [[text] for text in SHORT]
    return [
        scenario("32 clients, one short text", short, 32, 800),
        scenario("4 clients, 32 texts", batches, 4, 24),
        scenario("1 client, one short text", short, 1, 120),
    ]


class Raw:
    """onnxruntime without a server: all texts of a scenario known at once."""

    def __init__(self) -> None:
        directory = ROOT / "artifacts" / MODEL
        self.manifest = artifact.read(directory)
        self.tokenizer = Tokenizer(directory, self.manifest)
        self.backend = OnnxBackend(directory, self.manifest)
        self.lanes = len(os.sched_getaffinity(0))

    def run(self, work: Scenario) -> Run:
        """Embed the scenario's texts in passes by length, or one by one for a single client."""
        texts = [text for i in range(work.count) for text in work.texts[i % len(work.texts)]]
        start = time.perf_counter()
        ids = self.tokenizer.encode(texts).sequences
        if work.clients == 1:
            latencies = [self._timed([row]) for row in ids]
            return Run(time.perf_counter() - start, latencies)
        ids.sort(key=len, reverse=True)
        passes = []
        while ids:
            room = max(1, TOKENS_PER_PASS // len(ids[0]))
            passes.append(ids[:room])
            del ids[:room]
        with ThreadPoolExecutor(self.lanes) as pool:
            list(pool.map(self._timed, passes))
        return Run(time.perf_counter() - start, [0.0] * work.count)

    def _timed(self, sequences: list) -> float:  # type: ignore[type-arg]  # of arrays
        begin = time.perf_counter()
        self.backend.embed(pad(sequences, self.manifest.pad_token_id, self.manifest.padding_side))
        return time.perf_counter() - begin


@contextlib.contextmanager
def embedserve() -> Iterator[int]:
    """The real server of .venv, with its defaults."""
    command = [str(ROOT / ".venv/bin/embedserve"), "serve", "--port", "0", "--model", MODEL]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        line = next(s for s in process.stderr if "serving" in s)
        # Its log is read on and dropped: a full pipe would stop it.
        with ThreadPoolExecutor(1) as drain:
            drain.submit(lambda: [None for _ in process.stderr or ()])
            yield int(line.rpartition(":")[2].split()[0])
            process.terminate()


@contextlib.contextmanager
def replaced(python: str) -> Iterator[int]:
    """The service that is replaced."""
    command = [python, "-m", "tests.bench.replaced_server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.terminate()


def main(python: str | None = None) -> None:
    """Measure in turns, print a row a scenario."""
    raw = Raw()
    with contextlib.ExitStack() as stack:
        ports = {"embedserve": stack.enter_context(embedserve())}
        if python:
            ports["replaced"] = stack.enter_context(replaced(python))
        for work in scenarios():
            measured: dict[str, list[Run]] = {name: [] for name in (*ports, "raw")}
            for number in range(ROUNDS + 1):  # the first warms up
                for name, port in ports.items():
                    run = asyncio.run(drive(port, work.requests, work.clients, work.count))
                    if number:
                        measured[name].append(run)
                run = raw.run(work)
                if number:
                    measured["raw"].append(run)
            report(work, measured)


def report(work: Scenario, measured: dict[str, list[Run]]) -> None:
    """Print medians, and the medians of the ratios of runs that stood beside each other."""
    print(f"{work.name}:")
    for name, runs in measured.items():
        rate = median(run.rate for run in runs) * len(work.texts[0])
        p50 = median(run.percentile(0.5) for run in runs) * 1e3
        p99 = median(run.percentile(0.99) for run in runs) * 1e3
        pairs = list(zip(measured["embedserve"], runs, strict=True))
        faster = median(own.rate / other.rate for own, other in pairs)
        print(
            f"  {name:12} {rate:8.1f} texts/s  p50 {p50:7.2f} ms  p99 {p99:7.2f} ms  "
            f"embedserve's rate is {faster:.2f} of this"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
