"""The bars: what embedserve must reach against each peer, and whether it does."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Literal

from tests.bench.figures import Figures, ratio
from tests.bench.peers import ONNX, OWN, RAW, REPLACED

Sign = Literal["at least", "at most"]


@dataclass(frozen=True, slots=True)
class Bar:
    """A limit of a ratio of embedserve's figure to a peer's, round by round.

    Where `over` names another measure of embedserve's, the ratio is to that; with `less`, what is
    compared is embedserve's figure less this one.
    """

    scenario: str
    column: str
    measure: str
    sign: Sign
    limit: float
    over: str = ""
    less: str = ""
    says: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A bar with what was measured."""

    bar: Bar
    value: float

    @property
    def held(self) -> bool:
        at_least = self.bar.sign == "at least"
        return self.value >= self.bar.limit if at_least else self.value <= self.bar.limit


def _against(scenario: str, measure: str, sign: Sign, **limits: float) -> list[Bar]:
    peers = {"replaced": REPLACED, "onnx": ONNX, "raw": RAW}
    return [Bar(scenario, peers[p], measure, sign, limit) for p, limit in limits.items()]


CLIENTS = "32 clients, one short text: requests/s"
BATCHES = "4 clients, 32 texts: texts/s"
ONE = "1 client, one short text: p50"
BESIDE = "query beside 2 bulk clients: p50 / p99"
START = "cold start to first answer"
MEMORY = "resident memory after load"

BARS = (
    *_against(CLIENTS, "clients.rate", "at least", replaced=5.2, onnx=2.2, raw=0.92),
    *_against(BATCHES, "batches.texts", "at least", replaced=6.2, onnx=4.3, raw=0.96),
    *_against(ONE, "one.p50", "at most", replaced=1 / 2.6, onnx=1 / 1.8, raw=1.15),
    *_against(BESIDE, "beside.p50", "at most", onnx=1 / 30),
    Bar(BESIDE, RAW, "beside.p50", "at most", 0.5, "bulk.pass", "one.p50", "p50: idle + {} pass"),
    Bar(BESIDE, RAW, "beside.p99", "at most", 1.5, "bulk.pass", "one.p99", "p99: idle + {} pass"),
    Bar(BESIDE, RAW, "beside.texts", "at least", 0.85, "bulk.texts", "", "bulk keeps {}"),
    *_against(START, "start.seconds", "at most", replaced=1 / 9, onnx=1 / 18),
    *_against(MEMORY, "loaded.rss", "at most", replaced=1 / 3.5, onnx=1 / 9),
)


def judge(figures: Figures) -> list[Outcome]:
    """Each bar whose figures were measured."""
    outcomes = []
    for bar in BARS:
        own = figures[OWN].get(bar.measure, ())
        other = (
            figures[OWN].get(bar.over) if bar.over else figures.get(bar.column, {}).get(bar.measure)
        )
        if bar.less:
            own = [a - b for a, b in zip(own, figures[OWN].get(bar.less, ()), strict=True)]
        if not own or not other:
            continue
        # Starts have their own rounds; a scenario's figures stand beside each other in one round.
        value = ratio(own, other) if len(own) == len(other) else median(own) / median(other)
        outcomes.append(Outcome(bar, value))
    return outcomes
