"""Measure each family: python -m tests.models.speed (in .venv-export), on an idle machine.

The server's engine and sentence-transformers run in a process each and take turns. Writes
tests/models/speed.json and prints a table; the exit status is 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import export  # noqa: F401  # sets what the libraries read at import
from embedserve.config.models_toml import ModelSpec
from export import build
from export.libraries import versions
from export.steps import Nurseries
from tests.models.machine import processor
from tests.models.speed import lengths
from tests.models.speed.checkpoints import KINDS

PATH = Path(__file__).parents[1] / "speed.json"
ROOT = Path(__file__).parents[3]
LENGTHS = ("64", "384", "2048", lengths.MIXED)
BARS = {lengths.MIXED: 1.5}  # every other length: 1.0
BATCH_SIZES = (8, 32, 128)
_LIBRARIES = ("sentence-transformers", "transformers", "torch", "onnxruntime")


@dataclass(frozen=True, slots=True)
class Options:
    """How much is measured: tokens of a round, rounds, and the models' size."""

    families: Sequence[str]
    kinds: Sequence[str]
    tokens: int
    rounds: int
    hidden: int
    layers: int


class Engine:
    """A process of tests.models.speed.engines."""

    def __init__(self, python: Path, name: str, directory: Path) -> None:
        command = [str(python), "-m", "tests.models.speed.engines", name, str(directory)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        if (line := self._output.readline()).strip() != "ready":
            raise RuntimeError(f"{' '.join(command)} ended: {line!r}")

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self._input.close()
        self._process.wait(30)

    def seconds(self, texts: Sequence[str], batch_size: int = 0) -> float:
        """Embed the texts; how long it took."""
        request = {"texts": list(texts), "batch_size": batch_size}
        self._input.write(json.dumps(request) + "\n")
        self._input.flush()
        return float(self._output.readline())


def main(arguments: Sequence[str]) -> int:
    options, path = _options(arguments)
    began = time.monotonic()
    found: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="speed-") as place, Nurseries() as nurseries:
        for family in options.families:
            found[family] = measure(family, Path(place) / family, options, nurseries)
    document = {
        "command": " ".join(["python -m tests.models.speed", *arguments]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": versions(_LIBRARIES),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "hidden_size": options.hidden,
        "layers": options.layers,
        "families": found,
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    missed = [
        f"{family} at {kind}: {figures['ratio']:.2f}"
        for family, kinds in found.items()
        for kind, figures in kinds.items()
        if figures["ratio"] < BARS.get(kind, 1.0)
    ]
    print(f"{time.monotonic() - began:.0f} s; below the bar: {'; '.join(missed) or 'none'}")
    return 1 if missed else 0


def measure(
    family: str, place: Path, options: Options, nurseries: Nurseries
) -> dict[str, dict[str, float]]:
    """Make and export one model; return texts a second of both, and their ratio, by length."""
    place.mkdir()
    module = "tests.models.speed.checkpoints"
    size = [str(options.hidden), str(options.layers)]
    source = place / "model"
    subprocess.run(
        [sys.executable, "-m", module, family, str(source), *size],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    build.export(ModelSpec(name="m"), place / "out", source, True, lambda _: None, nurseries)
    results = {}
    with _engines(place / "out" / "m", source) as (ours, theirs):
        for kind in options.kinds:
            results[kind] = _compare(ours, theirs, lengths.sizes(kind, options.tokens), options)
            figures = "  ".join(f"{name} {value:8.2f}" for name, value in results[kind].items())
            print(f"{family:12} {kind:>6}  {figures}", flush=True)
    return results


@contextlib.contextmanager
def _engines(artifact: Path, source: Path) -> Iterator[tuple[Engine, Engine]]:
    with (
        Engine(ROOT / ".venv" / "bin" / "python", "server", artifact) as ours,
        Engine(Path(sys.executable), "torch", source) as theirs,
    ):
        yield ours, theirs


def _compare(
    ours: Engine, theirs: Engine, sizes: Sequence[int], options: Options
) -> dict[str, float]:
    """Alternate rounds of new texts; medians, with the batch size that serves torch best."""
    seeds = iter(range(1, 1000))
    warm = lengths.texts(sizes[: max(1, len(sizes) // 4)], next(seeds))
    ours.seconds(warm)
    theirs.seconds(warm, BATCH_SIZES[0])
    # Batches that hold all texts are all the same.
    tried = [size for n, size in enumerate(BATCH_SIZES) if not n or BATCH_SIZES[n - 1] < len(sizes)]
    took = {size: theirs.seconds(lengths.texts(sizes, next(seeds)), size) for size in tried}
    best = min(took, key=lambda size: took[size])
    rounds: tuple[list[float], list[float]] = ([], [])
    for _ in range(options.rounds):
        texts = lengths.texts(sizes, next(seeds))
        rounds[0].append(ours.seconds(texts))
        rounds[1].append(theirs.seconds(texts, best))
    mine, other = (len(sizes) / statistics.median(seconds) for seconds in rounds)
    return {
        "server": round(mine, 2),
        "torch": round(other, 2),
        "ratio": round(mine / other, 3),
        "batch_size": best,
    }


def _options(arguments: Sequence[str]) -> tuple[Options, Path]:
    parser = argparse.ArgumentParser(prog="python -m tests.models.speed")
    parser.add_argument("families", nargs="*", default=list(KINDS), help="default: all")
    parser.add_argument("--lengths", nargs="*", default=list(LENGTHS))
    parser.add_argument("--tokens", type=int, default=5120, help="of a round; default: 5120")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--out", type=Path, default=PATH)
    parsed = parser.parse_args(arguments)
    if unknown := sorted(set(parsed.families) - set(KINDS)):
        parser.error(f"no family {', '.join(unknown)}; families: {', '.join(KINDS)}")
    options = Options(
        parsed.families,
        parsed.lengths,
        parsed.tokens,
        parsed.rounds,
        parsed.hidden,
        parsed.layers,
    )
    return options, parsed.out


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
