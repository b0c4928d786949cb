"""embedserve embed beside onnxruntime in a loop, and on a Ray cluster: python -m tests.bench.bulk

    python -m tests.bench.bulk [--rounds 5] [--texts 8192]      the rate, against raw onnxruntime
    .venv-ray/bin/python -m tests.bench.bulk --ray              the same on two nodes of a core each

In turns, on the same texts and in one run; medians, and ratios round by round. `raw` sorts 512
texts at a time and cuts passes of 256 tokens. `work` is from the first text to the last part on
disk, as the command itself says; `whole` is the command from its start to its end, with loading the
model and joining. Processor time a text says the same where something else takes the cores. Then
what one reader and one writer can do, which bounds what a cluster is fed, and what a capacity model
needs: rates by length, and of one lane beside all.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from embedserve.bulk.chunks import Selection
from embedserve.bulk.inputs import open_input
from embedserve.bulk.maker import Maker
from embedserve.bulk.outputs import OUTPUTS
from embedserve.bulk.parts import Parts
from embedserve.bulk.pipeline import EmbeddedChunk
from tests.bench import corpus, machine, peers
from tests.bench.figures import ratio
from tests.bench.process import Running

DIMENSION = 384
CHUNK_ROWS = 4096
SERVE = peers.ROOT / ".venv" / "bin" / "python"


class Rates(NamedTuple):
    """Of one run: texts and tokens per second of its work, and texts from its start to its end."""

    texts: float
    tokens: float
    whole: float


def embed(source: Path, *more: str, python: Path | str = SERVE) -> Rates:
    """Run the command once."""
    target = source.with_name("out.npy")
    command = [python, "-m", "embedserve", "embed", source, target, "--model", corpus.MODEL]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, *more], cwd=peers.ROOT, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    found = re.search(r"([\d,]+) rows .* ([\d,]+) texts/s, ([\d,]+) tokens/s", done.stdout)
    if found is None:
        raise AssertionError(done.stderr)
    rows, texts, tokens = (float(number.replace(",", "")) for number in found.groups())
    for path in target.parent.glob(target.name + "*"):
        path.unlink()
    return Rates(texts, tokens, rows / seconds)


def write(place: Path, texts: list[str]) -> Path:
    """The texts as a file, each with an id."""
    path = place / "in.jsonl"
    lines = (json.dumps({"id": i, "text": text}) for i, text in enumerate(texts))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def against_raw(source: Path, texts: list[str], rounds: int) -> None:
    """The command and the loop in turns, the other asleep meanwhile."""
    raw = Running.start(peers.table(quick=True)[peers.RAW])
    rates: dict[str, list[float]] = {"raw": [], "work": [], "whole": []}
    processor: dict[str, list[float]] = {"raw": [], "whole": []}  # seconds a text
    try:
        raw.first_answer()
        raw.ask({"do": "all", "texts": texts[:512]})
        cores = len(os.sched_getaffinity(0))
        before, start = machine.busy(), time.perf_counter()
        for _ in range(rounds):
            used = raw.processor()
            rates["raw"].append(raw.ask({"do": "all", "texts": texts})["texts"])
            processor["raw"].append((raw.processor() - used) / len(texts))
            used = _children()
            found = embed(source)
            rates["work"].append(found.texts)
            rates["whole"].append(found.whole)
            processor["whole"].append((_children() - used) / len(texts))
        seconds = time.perf_counter() - start
        own = sum(map(sum, processor.values())) * len(texts)
        others = (machine.busy() - before - own) / seconds / cores
        print(f"what has no part in this took {others:.0%} of the cores")
    finally:
        raw.stop()
    for name, values in rates.items():
        listed = ", ".join(f"{value:.0f}" for value in values)
        part = ratio(values, rates["raw"])
        print(f"{name:6} {median(values):8.1f} texts/s  {part:.3f} of raw  ({listed})")
    for name, values in processor.items():
        part = ratio(values, processor["raw"])
        print(f"{name:6} {1000 * median(values):8.3f} processor ms a text  {part:.3f} of raw")


def on_ray(source: Path, rounds: int) -> None:
    """Two nodes of a core each, against this process's two lanes."""
    from tests.ray.clusters import two_nodes

    rates: dict[str, list[float]] = {"local": [], "ray": []}
    with two_nodes() as cluster:
        for _ in range(rounds):
            rates["local"].append(embed(source, "--lanes", "2", python=sys.executable).texts)
            there = ("--ray", cluster.address, "--chunk-rows", "512")
            rates["ray"].append(embed(source, *there, python=sys.executable).texts)
    for name, values in rates.items():
        listed = ", ".join(f"{value:.0f}" for value in values)
        print(f"{name:6} {median(values):8.1f} texts/s  ({listed})")
    print(f"efficiency {ratio(rates['ray'], rates['local']):.2f}")


def lengths_and_lanes(place: Path, texts: list[str]) -> None:
    """What a capacity model needs: rates by length of text, and of one lane beside all."""
    loads = {
        "short": corpus.short(8 * 512),
        "mixed": texts,
        "long": [" ".join(texts[i : i + 24]) for i in range(0, len(texts) - 24, 16)],
    }
    for name, load in loads.items():
        found = embed(write(place, load))
        rates = f"{found.texts:.0f} texts/s, {found.tokens:.0f} tokens/s"
        print(f"{name:6} {len(load):6} texts: {rates}")
    source = write(place, texts)
    one, every = embed(source, "--lanes", "1"), embed(source)
    print(f"one lane {one.texts:.0f} texts/s, every core {every.texts:.0f}")


def feeding(source: Path) -> None:
    """What one reader reads, one renderer renders and one writer writes, in rows per second."""
    reader = open_input(source, Selection(), CHUNK_ROWS)
    start, chunks = time.perf_counter(), [reader.read(cut) for cut in reader.cuts(None)]
    rows = sum(chunk.cut.rows for chunk in chunks)
    print(f"read   {rows / (time.perf_counter() - start):10,.0f} rows/s")
    kind = np.dtype("<f4")
    draw = np.random.default_rng(0)
    for suffix in (".npy", ".jsonl", ".parquet"):
        maker = Maker(OUTPUTS[suffix]("embedding", DIMENSION, kind), kind, "null")
        made = [
            EmbeddedChunk(draw.standard_normal((chunk.cut.rows, DIMENSION)).astype(kind), {}, 0, 0)
            for chunk in chunks
        ]
        with tempfile.TemporaryDirectory(dir=source.parent) as place:
            parts = Parts(Path(place))
            maker.part(chunks[0], made[0])  # pyarrow is imported with the first
            start = time.perf_counter()
            rendered = [maker.part(c, e) for c, e in zip(chunks, made, strict=True)]
            rendering = rows / (time.perf_counter() - start)
            start = time.perf_counter()
            for part in rendered:
                parts.put(part)
            writing = rows / (time.perf_counter() - start)
            start = time.perf_counter()
            with (Path(place) / "joined").open("wb") as file:
                maker.output.join(parts, {}, file)
            joining = rows / (time.perf_counter() - start)
        print(
            f"{suffix:9} render {rendering:10,.0f}  write {writing:10,.0f}  "
            f"join {joining:10,.0f} rows/s"
        )


def _children() -> float:
    """Processor seconds of the processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bulk")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=8192)
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    texts = corpus.mixed(options.texts)
    peers.SCRATCH.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=peers.SCRATCH) as place:
        source = write(Path(place), texts)
        facts = machine.facts()
        print(f"{len(texts):,} texts, {facts['processor']}, {facts['cores']} cores")
        if options.ray:
            on_ray(source, options.rounds)
        else:
            against_raw(source, texts, options.rounds)
            feeding(source)
            lengths_and_lanes(Path(place), texts)


if __name__ == "__main__":
    main()
