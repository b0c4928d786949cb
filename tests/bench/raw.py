"""onnxruntime in a loop, without a server: python -m tests.bench.raw (in .venv)

The best fixed schedule for each load, found by measuring a few. One text: one pass with every core.
Many: the texts that as many clients have in flight, tokenized request by request, sorted by length,
cut into passes under a budget of tokens; two lanes take passes one after the other, and the next
group's follow without a barrier. `whole` sorts 512 texts at once: what no server can know.

Reads a line of JSON, answers with one.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from threading import Semaphore
from typing import Any, NamedTuple, TypeVar

import numpy as np
import onnxruntime

from embedserve import artifact
from embedserve.arrays.batch import pad
from embedserve.arrays.finishing import normalize
from embedserve.arrays.pooling import pool
from embedserve.arrays.types import Floats, Ints
from embedserve.artifact import GRAPH
from embedserve.model.tokenizer import Tokenizer
from tests.bench import corpus
from tests.bench.figures import percentile

T = TypeVar("T")

WHOLE = 512  # texts
TURNS = 3  # in which the settings are measured
BUDGETS = (64, 128, 256, 512, 1024)
PADDING = (0.2, 1.0)
SPINS = ("0", "200", "1000")  # microseconds after each operator
# load -> requests in flight, and texts of each
LOADS = {"clients": (corpus.CLIENTS, 1), "batches": (corpus.BATCH_CLIENTS, corpus.BATCH)}


class One(NamedTuple):
    """How a lone text is run."""

    threads: int
    spin: str


class Many(NamedTuple):
    """How a group is cut: tokens a pass, and how much shorter than the first a text may be."""

    budget: int
    padding: float


WHOLE_HOW = Many(256, 0.2)


class Raw:
    """The model, the loads and the schedules chosen so far."""

    def __init__(self) -> None:
        self.folder = Path("artifacts") / corpus.MODEL
        self.manifest = artifact.read(self.folder)
        self.tokenizer = Tokenizer(self.folder, self.manifest)
        self.cores = len(os.sched_getaffinity(0))
        self.narrow = self.session(One(1, "0"))
        self.lone = {how: self.session(how) for how in (One(self.cores, spin) for spin in SPINS)}
        self.lone[One(1, "0")] = self.narrow
        short = [[text] for text in corpus.short()]
        self.loads = {
            name: itertools.cycle(texts)
            for name, texts in {"one": short, "clients": short, "batches": corpus.batches()}.items()
        }
        self.chosen: dict[str, Many] = {}

    def session(self, how: One) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = how.threads, 1
        spins = how.threads > 1 and how.spin != "0"
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
        if spins:
            options.add_session_config_entry("session.intra_op.spin_duration_us", how.spin)
        providers = ["CPUExecutionProvider"]
        return onnxruntime.InferenceSession(str(self.folder / GRAPH), options, providers=providers)

    def run(self, ids: list[Ints], session: onnxruntime.InferenceSession) -> Floats:
        """One pass, to finished vectors."""
        batch = pad(ids, self.manifest.pad_token_id, self.manifest.padding_side)
        feed = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        feed["token_type_ids"] = np.zeros_like(batch.input_ids)
        names = [i.name for i in session.get_inputs()]
        hidden = session.run(None, {name: feed[name] for name in names})[0]
        return normalize(pool(self.manifest.pooling, hidden, batch.attention_mask))

    def one(self, seconds: float) -> dict[str, float]:
        """Lone texts, one after the other, with each setting for its part of the time; the best.

        Chosen in each turn anew: whether spinning helps depends on what else runs on the machine.
        """
        each = [self._lone(seconds / len(self.lone), session) for session in self.lone.values()]
        latencies = min(each, key=median)
        return {"p50": percentile(latencies, 0.5), "p99": percentile(latencies, 0.99)}

    def _lone(self, seconds: float, session: onnxruntime.InferenceSession) -> list[float]:
        latencies, end = [], time.perf_counter() + seconds
        while (begin := time.perf_counter()) < end:
            self.run(self.tokenizer.encode(next(self.loads["one"])).sequences, session)
            latencies.append(time.perf_counter() - begin)
        return latencies

    def many(self, load: str, requests: int, how: Many, seconds: float) -> float:
        """Texts per second when `requests` requests of a load are in flight."""
        start = time.perf_counter()

        def groups() -> Iterator[list[list[str]]]:
            while time.perf_counter() < start + seconds:
                yield list(itertools.islice(self.loads[load], requests))

        texts = self.schedule(groups(), how)
        return texts / (time.perf_counter() - start)

    def all(self, texts: Sequence[str]) -> float:
        """Texts per second when these are all there are, WHOLE at a time."""
        start = time.perf_counter()
        groups = ([list(texts[i : i + WHOLE])] for i in range(0, len(texts), WHOLE))
        return self.schedule(groups, WHOLE_HOW) / (time.perf_counter() - start)

    def schedule(self, groups: Iterable[list[list[str]]], how: Many) -> int:
        """Run groups of requests, one after the other without a barrier; how many texts it was."""
        passes: SimpleQueue[list[Ints] | None] = SimpleQueue()
        ahead = Semaphore(2 * self.cores)  # the schedule is made no further ahead than this

        def lane() -> int:
            done = 0
            while (ids := passes.get()) is not None:
                self.run(ids, self.narrow)
                ahead.release()
                done += len(ids)
            return done

        with ThreadPoolExecutor(self.cores) as lanes:
            running = [lanes.submit(lane) for _ in range(self.cores)]
            for group in groups:
                ids = [row for texts in group for row in self.tokenizer.encode(texts).sequences]
                for part in cut(ids, how):
                    ahead.acquire()
                    passes.put(part)
            for _ in running:
                passes.put(None)
            return sum(future.result() for future in running)

    def choose(self, seconds: float) -> dict[str, object]:
        """Measure the settings in turns, `seconds` each, and keep the best of each load."""
        manys = list(itertools.starmap(Many, itertools.product(BUDGETS, PADDING)))
        for load, (clients, _) in LOADS.items():
            rate = functools.partial(self.many, load, clients, seconds=seconds)
            self.chosen[load] = best(manys, rate)
        return {load: how._asdict() for load, how in self.chosen.items()}

    def answer(self, do: str, seconds: float, texts: Sequence[str]) -> dict[str, object]:
        """Do what a line asks for."""
        if do == "embed":
            rows = self.run(self.tokenizer.encode(texts).sequences, self.narrow)
            return {"rows": rows.tolist()}
        if do == "choose":
            return self.choose(seconds)
        if do == "one":
            return dict(self.one(seconds))
        if do == "all":
            return {"texts": self.all(texts)}
        clients, size = LOADS[do]
        return {
            "texts": self.many(do, clients, self.chosen[do], seconds),
            "whole": self.many(do, WHOLE // size, WHOLE_HOW, seconds / 2),
        }


def best(settings: Sequence[T], measure: Callable[[T], float]) -> T:
    """The setting of the highest median, each measured once in every turn."""
    turns = [[measure(how) for how in settings] for _ in range(TURNS)]
    medians = [median(values) for values in zip(*turns, strict=True)]
    return settings[medians.index(max(medians))]


def cut(ids: list[Ints], how: Many) -> Iterator[list[Ints]]:
    """Passes of near-equal lengths, the longest first."""
    left = sorted(ids, key=len, reverse=True)
    while left:
        longest = len(left[0])
        room = max(1, how.budget // longest)
        least = longest * (1 - how.padding)
        part = [row for row in left[:room] if len(row) >= least]
        yield part
        del left[: len(part)]


def main() -> None:
    """Answer line by line until the input ends."""
    raw = Raw()
    for line in sys.stdin:
        wanted: dict[str, Any] = json.loads(line)
        found = raw.answer(wanted["do"], wanted.get("seconds", 0.0), wanted.get("texts", ()))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
