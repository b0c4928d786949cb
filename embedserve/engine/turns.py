"""In which order work that is done in slices goes on: Turns; pure.

The rule is that of passes (batch_queue.py): the key of a request's work is the work done when it
came plus PATIENCE times its own. The smallest key has the next slice, so small work passes large
work until PATIENCE times the larger one has gone by; from then on nothing newer passes it.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

from embedserve.engine.batch_queue import PATIENCE


@dataclass(slots=True, eq=False)
class Turn:
    """One request's work that waits: its kind, and how many units are left of it."""

    kind: Hashable
    left: int
    place: int  # its key
    number: int  # of all that came; of equal keys the first goes first
    waiting: bool = True


class _Waiting(NamedTuple):
    place: int
    number: int
    turn: Turn


class Turns:
    """The work that waits, in whole units. Owned by the event loop; not thread-safe; no clock.

    `grain`: how exactly, in units, the work before a request is known.
    """

    def __init__(self, grain: int) -> None:
        self.done = 0  # the units done so far
        self._grain = grain
        self._number = 0
        self._count = 0
        self._heap: list[_Waiting] = []
        # What is left by place, in grains, and kind.
        self._places: dict[int, dict[Hashable, int]] = {}

    def __len__(self) -> int:
        return self._count

    def put(self, kind: Hashable, cost: int) -> Turn:
        """Add work of `cost` units, 1 or more."""
        self._number += 1
        self._count += 1
        turn = Turn(kind, cost, self.done + PATIENCE * cost, self._number)
        heapq.heappush(self._heap, _Waiting(turn.place, turn.number, turn))
        self._add(turn, cost)
        return turn

    def take(self) -> Turn | None:
        """The work that has the next slice; it is not given again before `advance`."""
        while self._heap:
            turn = heapq.heappop(self._heap).turn
            if turn.waiting:
                return turn
        return None

    def advance(self, turn: Turn, units: int) -> None:
        """Its slice is over: count `units` as done, also of work that has left meanwhile."""
        self.done += units
        if turn.waiting:
            units = min(units, turn.left)
            turn.left -= units
            self._add(turn, -units)
            heapq.heappush(self._heap, _Waiting(turn.place, turn.number, turn))

    def leave(self, turn: Turn) -> None:
        """Forget work that is done, or that nobody waits for; a second call has no effect."""
        if not turn.waiting:
            return
        turn.waiting = False
        self._count -= 1
        self._add(turn, -turn.left)
        if len(self._heap) > 4 * self._count + 64:  # most of it has left: memory stays bounded
            self._heap = [waiting for waiting in self._heap if waiting.turn.waiting]
            heapq.heapify(self._heap)

    def before(self, cost: int) -> dict[Hashable, int]:
        """Units of each kind that go before work of `cost` units that came now; to one grain."""
        return self._sum((self.done + PATIENCE * cost) // self._grain)

    def waiting(self) -> dict[Hashable, int]:
        """Units of each kind that wait."""
        return self._sum(None)

    def _sum(self, last: int | None) -> dict[Hashable, int]:
        found: dict[Hashable, int] = defaultdict(int)
        for place, work in self._places.items():
            if last is None or place <= last:
                for kind, units in work.items():
                    found[kind] += units
        return found

    def _add(self, turn: Turn, units: int) -> None:
        place = turn.place // self._grain
        work = self._places.setdefault(place, {})
        work[turn.kind] = work.get(turn.kind, 0) + units
        if not work[turn.kind]:
            del work[turn.kind]
        if not work:
            del self._places[place]
