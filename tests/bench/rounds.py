"""Interleaved rounds: every peer in turn under each load, all others paused."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from tests.bench import corpus, machine
from tests.bench.peers import RAW, REPLACED, TORCH, Peer
from tests.bench.process import MEMORY, Running
from tests.bench.scenarios import RAW_SCENARIOS, SCENARIOS, Turn

MAIN = ("one", "clients", "batches")
# No bar asks how these fare beside bulk, and they take long at it: two rounds.
SLOW, FEW = (REPLACED, TORCH), 2
SETTLE = 1.0  # seconds after the first answer, until idle memory is read
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Plan:
    """How many rounds and starts, and the seconds of a turn."""

    rounds: int
    starts: int
    seconds: int
    choosing: float  # for each schedule that raw onnxruntime may take, three times


@dataclass(slots=True)
class Rounds:
    """The peers that run, and what was measured of them: peer -> measure -> a figure a round."""

    plan: Plan
    peers: Sequence[Peer]
    running: dict[str, Running] = field(default_factory=dict)
    figures: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    generator: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    others: list[float] = field(default_factory=list)  # part of the cores that went elsewhere
    idle: float = 0.0  # most processor seconds of paused peers in a turn

    def start(self) -> None:
        """Start each peer some times, measure its first answer, and leave it paused."""
        for number in range(self.plan.starts):
            for peer in self.peers:
                running = self.running[peer.name] = Running.start(peer)
                seconds = running.first_answer()
                self._note(f"{peer.name}: first answer after {seconds:.2f} s")
                time.sleep(SETTLE)
                if peer.served:
                    self._keep(peer.name, {"start.seconds": seconds})
                    self._keep(peer.name, {f"idle.{k}": v for k, v in running.memory().items()})
                if number + 1 < self.plan.starts:
                    running.stop()
                else:
                    running.pause()

    def compare(self) -> float:
        """The largest difference between two peers' vectors; AssertionError past tolerance."""
        texts = [*corpus.short()[:40], *corpus.mixed()[:80]]
        rows = []
        for running in self.running.values():
            running.resume()
            found = np.array(running.embed(texts), np.float64)
            rows.append(found / np.linalg.norm(found, axis=1, keepdims=True))
            running.pause()
        difference = max((float(np.abs(a - b).max()) for a, b in pairwise(rows)), default=0.0)
        if not difference < TOLERANCE:
            raise AssertionError(f"the peers' vectors differ by {difference}")
        return difference

    def warm(self) -> dict[str, object]:
        """Let each peer see every kind of load once; raw onnxruntime's schedules."""
        chosen: dict[str, object] = {}
        for name, running in self.running.items():
            running.resume()
            if name == RAW:
                chosen = running.ask({"do": "choose", "seconds": self.plan.choosing})
            for scenario in MAIN:
                SCENARIOS[scenario](Turn(running, 1, 0))
            running.pause()
        return chosen

    def measure(self) -> None:
        """All rounds; in each another peer is the first."""
        names = list(self.running)
        for number in range(self.plan.rounds):
            first = number % len(names)
            for scenario in SCENARIOS:
                for name in (*names[first:], *names[:first]):
                    if _takes_part(name, scenario, number):
                        self._turn(name, scenario, number)
            for name in names:  # the largest of the round's turns: it stays with the process
                for kind in MEMORY.values() if self.running[name].peer.served else ():
                    values = self.figures[name].pop(f"turn.{kind}")
                    self._keep(name, {f"loaded.{kind}": max(values)})

    def stop(self) -> None:
        """End every peer."""
        for running in self.running.values():
            running.stop()

    def _turn(self, name: str, scenario: str, number: int) -> None:
        running = self.running[name]
        others = [other for other in self.running.values() if other is not running]
        idle, own, begin = _processor(others), _own_processor(), time.perf_counter()
        busy, used = machine.busy(), running.processor()
        running.resume()
        capacity = self.figures[name]["clients.rate"][-1:] or [0.0]
        found = SCENARIOS[scenario](Turn(running, self.plan.seconds, number, capacity[0]))
        memory = running.memory()
        running.pause()
        self.idle = max(self.idle, _processor(others) - idle)
        own, used = _own_processor() - own, running.processor() - used
        cores = (time.perf_counter() - begin) * (os.cpu_count() or 1)
        self.generator[scenario] = max(self.generator[scenario], own / cores)
        self.others.append(max(0.0, machine.busy() - busy - own - used) / cores)
        self._keep(name, {f"{scenario}.{measure}": value for measure, value in found.items()})
        if running.peer.served:
            self._keep(name, {f"turn.{kind}": value for kind, value in memory.items()})
        shown = "  ".join(f"{measure} {value:.4g}" for measure, value in found.items())
        self._note(f"round {number + 1}  {scenario:8} {name:14} {shown}")

    def _keep(self, name: str, found: dict[str, float]) -> None:
        for measure, value in found.items():
            self.figures[name][measure].append(value)

    def _note(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def _takes_part(name: str, scenario: str, number: int) -> bool:
    if name == RAW:
        return scenario in RAW_SCENARIOS
    return name not in SLOW or scenario in MAIN or number < FEW


def _processor(running: Sequence[Running]) -> float:
    return sum(one.processor() for one in running)


def _own_processor() -> float:
    """Processor seconds of the load generator: this process and the programs it has run."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
