"""How fast each model runs, and whether a request would wait too long: refuse at once, with 429."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from embedserve.engine.batch_queue import PATIENCE
from embedserve.errors import RequestError
from embedserve.model.cost import Shape

# One pass is enough for a first guess; each later pass weighs 1/20.
_RATE_WEIGHT = 0.05
# How fast the share of passing work is learned: fast when it grows, slowly when it shrinks. So the
# prediction holds for nearly all requests, not for half.
_MORE_WEIGHT, _LESS_WEIGHT = 0.2, 0.02
# How fast the pace of slices is learned: sooner when they take longer, for the same reason.
_SLOWER_WEIGHT, _FASTER_WEIGHT = 0.3, 0.1


@dataclass(frozen=True, slots=True)
class Ahead:
    """What a request of `cost` found when it came, in cost units.

    `done`: work done until then; `before`: what waits and goes before it.
    """

    done: float
    before: float
    cost: float

    @property
    def passing(self) -> float:
        """The most work that may still come and pass it; at most as much as waited before it."""
        return min(PATIENCE * self.cost, self.before)


class Pace:
    """Seconds that a unit of each kind of work takes, learned from its slices.

    `first`: until something was measured. Owned by the event loop; has no clock.
    """

    def __init__(self, first: float, slice_seconds: float) -> None:
        self._first = first
        self._slice_seconds = slice_seconds
        self._paces: dict[Hashable, float] = {}

    def learn(self, kind: Hashable, units: int, seconds: float) -> None:
        """Learn from one slice; a short one says little."""
        if units <= 0:
            return
        known = self._paces.get(kind, self._first)
        more = seconds / units - known
        weight = _SLOWER_WEIGHT if more > 0 else _FASTER_WEIGHT
        self._paces[kind] = known + weight * min(1.0, seconds / self._slice_seconds) * more

    def seconds(self, work: Mapping[Hashable, int]) -> float:
        """Seconds for so many units of each kind."""
        return sum(units * self._paces.get(kind, self._first) for kind, units in work.items())


class Admission:
    """Decides who waits too long (429), by rates in cost units per second and lane.

    Owned by the event loop; has no clock.
    """

    def __init__(self, rates: Mapping[Shape, float], lanes: int, max_wait: float) -> None:
        self._rates = dict(rates)
        self._lanes = lanes
        self._max_wait = max_wait
        self._passes = 0.0  # the share of Ahead.passing that has really come lately

    def measure(self, shape: Shape, cost: float, seconds: float) -> None:
        """Learn from one pass."""
        rate = cost / max(seconds, 1e-9)
        known = self._rates[shape]
        self._rates[shape] = known + _RATE_WEIGHT * (rate - known) if known else rate

    def learn(self, ahead: Ahead, done: float) -> None:
        """Learn from a request whose last pass had begun when `done` work was done.

        It waited for all work done for others until then, including others' sequences in its own
        passes. One that found less work than its own hardly waited, so nothing is learned from it.
        """
        if ahead.before < ahead.cost or ahead.passing <= 0:
            return
        passed = (done - ahead.done - ahead.before - ahead.cost) / ahead.passing
        more = min(1.0, max(0.0, passed)) - self._passes
        self._passes += more * (_MORE_WEIGHT if more > 0 else _LESS_WEIGHT)

    def wait_behind(self, ahead: Ahead, before: Mapping[Shape, float]) -> float:
        """Seconds for the work `before` a request, and for what passes it until it is done."""
        if ahead.before <= 0:
            return 0.0
        return self.wait(before) * (1 + self._passes * ahead.passing / ahead.before)

    def wait(self, work: Mapping[Shape, float]) -> float:
        """Seconds for that much work on all lanes; 0 where a model's rate is not known yet."""
        waits = (cost / self._rates[shape] for shape, cost in work.items() if self._rates[shape])
        return sum(waits) / self._lanes

    def accepts(self, wait: float) -> bool:
        """Whether a request without a deadline may wait this long."""
        return wait <= self._max_wait

    def check(self, wait: float, most: float = math.inf) -> None:
        """Raise 429 if a request would wait longer than the limit, or than its own limit `most`.

        Its own work does not count: nothing that an idle server could do is refused for its size.
        """
        limit = min(self._max_wait, most)
        if wait <= limit:
            return
        whose = "is accepted" if limit == self._max_wait else "is left before its deadline"
        late = max(1, round((wait - limit) * 1000))
        raise RequestError(
            "queue_full",
            f"the request would wait {wait:.1f} s; at most {limit:.3g} s {whose}; try again later",
            headers={
                "Retry-After": str(math.ceil(late / 1000)),
                "retry-after-ms": str(late),
            },
        )
