"""Measures which lanes and tokens per pass are fastest on this host, with real English."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import NamedTuple

from embedserve.arrays.types import Ints
from embedserve.config.models_toml import ModelSpec
from embedserve.diagnose.sample_texts import texts
from embedserve.engine.batch_queue import BatchQueue, Entry
from embedserve.errors import Exit, StartupError
from embedserve.model.cost import Shape
from embedserve.model.loading import load_model
from embedserve.model.model import Model

PASS_SIZES = (64, 128, 256, 512, 1024)
# More threads help one pass only with big matrices, and each count costs a session's memory.
THREADS = (1, 2, 4)
ROUNDS = 5
# Smaller differences are noise from other work on the host.
NOISE = 0.03
# With less than this share of the CPU, the result says little.
ENOUGH = 0.9
# Waiting sequences per core, as on a busy server: four clients with 32 texts on two cores.
WAITING = 64
REQUEST = 32  # texts


@dataclass(frozen=True, slots=True)
class Candidate:
    """`lanes` passes at once, each with `threads` threads and up to `tokens_per_pass` tokens."""

    lanes: int
    threads: int
    tokens_per_pass: int


class Trial(NamedTuple):
    """The result of one turn: tokens per second, and processor seconds per second."""

    rate: float
    cores: float


Turns = Mapping[Candidate, Sequence[Trial]]


def candidates(cores: int) -> list[Candidate]:
    """Return what may be fastest: to use all cores, or half (if two share a physical core)."""
    pairs = {(cores // threads, threads) for threads in THREADS if threads <= cores}
    pairs |= {(max(1, cores // 2), 1)}
    return [Candidate(*pair, size) for pair in sorted(pairs) for size in PASS_SIZES]


def measure(
    spec: ModelSpec, directory: Path, cores: int, seconds: float
) -> dict[Candidate, list[Trial]]:
    """Measure every candidate in turn, ROUNDS times or until the time is up, at least once."""
    start = time.perf_counter()
    grid = candidates(cores)
    runs = {threads: _opened(spec, directory, threads) for threads in {c.threads for c in grid}}
    model = next(iter(runs.values())).model
    sequences = model.tokenizer.encode(texts()).sequences
    # One pass of the largest size first, so that its memory is allocated.
    for candidate in {c.threads: c for c in grid}.values():
        turn(candidate, runs[candidate.threads], sequences, cores, 0.0)
    turns: dict[Candidate, list[Trial]] = {candidate: [] for candidate in grid}
    share = max(0.0, start + seconds - time.perf_counter()) / (len(grid) * ROUNDS)
    # Alternate the order, so that drift cancels out.
    order = [c for number in range(ROUNDS) for c in grid[:: 1 if number % 2 else -1]]
    for number, candidate in enumerate(order):
        if number >= len(grid) and time.perf_counter() + share > start + seconds:
            break
        found = turn(candidate, runs[candidate.threads], sequences, cores, share)
        turns[candidate].append(found)
    return turns


@dataclass(frozen=True, slots=True)
class Opened:
    """A model, and a function that runs one pass of it on a fixed number of threads."""

    model: Model
    run: Callable[[list[Ints]], object]


def _opened(spec: ModelSpec, directory: Path, threads: int) -> Opened:
    model, _ = load_model(spec, directory, "cpu", threads)
    return Opened(model, functools.partial(model.encoder.run, alone=threads > 1))


class _Load:
    """A queue that never runs low."""

    def __init__(
        self, tokens_per_pass: int, sequences: Iterable[Ints], shape: Shape, waiting: int
    ) -> None:
        self._queue = BatchQueue(tokens_per_pass)
        self._stream = itertools.cycle(sequences)
        self._shape, self._waiting = shape, waiting

    def take(self, free: int) -> list[Ints]:
        """Return the sequences of the next pass when `free` lanes are free."""
        while len(self._queue) < self._waiting:
            request = itertools.islice(self._stream, REQUEST)
            self._queue.put([Entry(ids, self._shape) for ids in request])
        return [entry.ids for entry in self._queue.take(lanes=free)]


def turn(
    candidate: Candidate, opened: Opened, sequences: Sequence[Ints], cores: int, seconds: float
) -> Trial:
    """Run a candidate for `seconds`, not counting padding. StartupError if a pass fails."""
    encoder = opened.model.encoder
    load = _Load(candidate.tokens_per_pass, sequences, encoder.shape, WAITING * cores)
    done: SimpleQueue[Future[object]] = SimpleQueue()

    def start_pass(free: int) -> int:
        ids = load.take(free)
        work = pool.submit(opened.run, ids)
        work.add_done_callback(done.put)
        return sum(map(len, ids))

    start, processor = time.perf_counter(), time.process_time()
    ended, running = 0.0, candidate.lanes
    with ThreadPoolExecutor(candidate.lanes) as pool:
        tokens = sum(start_pass(free) for free in range(candidate.lanes, 0, -1))
        while running:
            _check(done.get(), encoder.name)
            elapsed = time.perf_counter() - start
            if elapsed < seconds:
                tokens += start_pass(1)
            else:  # this lane stops; only the time that it ran counts
                running, ended = running - 1, ended + elapsed
    used = time.process_time() - processor
    return Trial(tokens * candidate.lanes / ended, used * candidate.lanes / ended)


def _check(work: Future[object], name: str) -> None:
    try:
        work.result()
    except Exception as error:  # whatever a pass raises
        raise StartupError(f"{name}: a pass failed: {error}", Exit.SOFTWARE) from error


def recommend(turns: Turns) -> Candidate:
    """Return the fastest that a server can run: when all lanes are busy, each has one thread.

    Among those equally fast within the noise, choose the smallest passes: a text that comes while
    all lanes are busy waits for a pass to end.
    """
    rates = {candidate: rate for candidate, rate in _rates(turns).items() if candidate.threads == 1}
    enough = max(rates.values()) * (1 - NOISE)
    equal = [candidate for candidate, rate in rates.items() if rate >= enough]
    return min(equal, key=lambda candidate: (candidate.tokens_per_pass, -rates[candidate]))


def had(turns: Turns, cores: int) -> float:
    """Return the share of the cores that this process got; well below 1 if they were busy."""
    full = [runs for c, runs in turns.items() if c.lanes == cores and c.threads == 1]
    return max(median(run.cores for run in runs) for runs in full) / cores


def table(turns: Turns, cores: int) -> str:
    """Return a table, fastest first, with a warning if much of the CPU was busy elsewhere."""
    rows = sorted(_rates(turns).items(), key=lambda row: -row[1])
    lines = ["lanes    threads/lane    tokens/pass  tokens/s  of the best"]
    for c, rate in rows:
        figures = f"{rate:10,.0f}{rate / rows[0][1]:13.2f}"
        lines.append(f"{c.lanes:5}{c.threads:16}{c.tokens_per_pass:15}{figures}")
    part = had(turns, cores)
    if part < ENOUGH:
        lines += ["", f"only {part:.0%} of the CPU was available: measure on an idle host"]
    return "\n".join(lines)


def _rates(turns: Turns) -> dict[Candidate, float]:
    return {candidate: median(run.rate for run in runs) for candidate, runs in turns.items()}
