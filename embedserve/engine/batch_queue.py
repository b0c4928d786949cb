"""Which sequences share a forward pass, and in which order: Entry, BatchQueue; pure.

A request's key is the work done when it came plus PATIENCE times its own work. So a small request
passes a large one until PATIENCE times the large one's work is done. After that nothing newer
passes it, so nothing starves. A pass starts from the entry with the smallest key (the longest of
its request first). It is filled, in the order of keys, with sequences of near lengths up to a
budget of tokens: on a CPU small passes of equal lengths beat big ones. Sequences with a much
larger key do not join it, so the pass of a query stays as short as the query. While small requests
come, the passes of larger ones are smaller, because the next request waits for one to end. When
less waits than would fill the free lanes, it is shared out among them. Sequences too long for a
padded pass share one only with sequences of exactly their length. A sequence that two requests ask
for waits once, at the better of their places.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from embedserve.arrays.types import Ints
from embedserve.model.cost import FREE_PADDING, MAX_PADDING, Shape

# A query overtakes equal bulk requests while fewer than PATIENCE of them wait. Each request is done
# before PATIENCE times its work has gone by.
PATIENCE = 8
# A request is small when it is done before one budget of later work: a query of 32 tokens at 256.
# For AFTER_SMALL budgets of work after a small request, passes of larger ones get PART_AFTER_SMALL
# of the budget: a query beside bulk takes 15.5 ms instead of 21 (p50), and bulk keeps 0.86 of its
# rate instead of 0.90.
AFTER_SMALL, PART_AFTER_SMALL = 16, 0.7
# A pass of more than this many budgets is long: at most all lanes but one run long passes.
LONG_PASS_BUDGETS = 8


@dataclass(slots=True, eq=False)
class Entry:
    """One sequence: its ids (t,) int64, and who reads its row, each with the row's place.

    `key` identifies it for the caller. The queue sets the rest: `place` is its order there, `reach`
    is `place` minus the work done when it was queued.
    """

    ids: Ints
    shape: Shape
    key: Any = None
    readers: list[tuple[Any, int]] = field(default_factory=list)
    waiting: bool = False
    place: float = 0.0
    reach: float = 0.0

    @property
    def cost(self) -> float:
        return self.shape.cost(len(self.ids))


class _Waiting(NamedTuple):
    key: float
    negative_length: int
    number: int
    entry: Entry


@dataclass(slots=True)
class _Work:
    """How many sequences, and their cost."""

    depth: int = 0
    cost: float = 0.0

    def count(self, entry: Entry, sign: int) -> None:
        self.depth += sign
        # Exactly zero when nothing waits: sums of floats leave crumbs.
        self.cost = self.cost + sign * entry.cost if self.depth else 0.0


class BatchQueue:
    """The entries that wait. Owned by the event loop; not thread-safe; has no clock."""

    def __init__(self, tokens_per_pass: int) -> None:
        self._budget = self._room = tokens_per_pass
        self.done = 0.0  # the work that was taken, in cost units
        self._small_until = 0.0  # in work done
        self._number = 0
        self._short: list[_Waiting] = []
        self._long: list[_Waiting] = []
        self._by_length: dict[tuple[Shape, int], list[_Waiting]] = {}
        self._work: dict[Shape, _Work] = defaultdict(_Work)
        self._places: dict[tuple[Shape, int], _Work] = defaultdict(_Work)  # by place, in budgets

    def shrink(self, tokens: int) -> None:
        """Limit each pass to this many tokens from now on."""
        self._room = max(1, min(self._room, tokens))

    def restore(self) -> None:
        """Take as much into a pass as at first."""
        self._room = self._budget

    def __len__(self) -> int:
        return sum(work.depth for work in self._work.values())

    def depth(self, shape: Shape) -> int:
        """How many sequences of a model wait."""
        return self._work[shape].depth

    def cost(self, shape: Shape) -> float:
        """How much work of a model waits."""
        return self._work[shape].cost

    def cost_before(self, cost: float) -> dict[Shape, float]:
        """The work of each model that goes before a request of `cost` now, exact to one budget."""
        last = self._budgets(self.done + PATIENCE * cost)
        before: dict[Shape, float] = defaultdict(float)
        for (shape, budgets), work in self._places.items():
            if budgets <= last:
                before[shape] += work.cost
        return before

    def is_long(self, entry: Entry) -> bool:
        """Whether a pass of this entry keeps a lane for long."""
        return entry.cost > LONG_PASS_BUDGETS * self._budget

    def put(self, entries: list[Entry]) -> None:
        """Add the sequences of one request; one that waits already takes the better place."""
        reach = PATIENCE * sum(entry.cost for entry in entries)
        key = self.done + reach
        for entry in entries:
            if entry.waiting:
                if entry.place <= key:
                    continue
                self._count(entry, -1)
            entry.waiting, entry.place, entry.reach = True, key, reach
            self._count(entry, +1)
            self._number += 1
            waiting = _Waiting(key, -len(entry.ids), self._number, entry)
            heapq.heappush(self._long if self.is_long(entry) else self._short, waiting)
            of_length = self._by_length.setdefault((entry.shape, len(entry.ids)), [])
            heapq.heappush(of_length, waiting)

    def discard(self, entries: Iterable[Entry]) -> None:
        """Forget entries that still wait; the others are left alone."""
        for entry in entries:
            if entry.waiting:
                self._leave(entry)
        self._sweep()

    def clear(self) -> list[Entry]:
        """Remove and return everything that waits."""
        heaps = (*self._short, *self._long)
        entries = list(dict.fromkeys(w.entry for w in heaps if w.entry.waiting))
        self.discard(entries)
        return entries

    def take(self, allow_long: bool = True, lanes: int = 1) -> list[Entry]:
        """Remove and return the entries of the next pass, [] when there is none.

        `allow_long` false leaves long passes where they are. `lanes` are free: when less waits
        than would fill them, each gets its part, so that a lone request uses every core.
        """
        first = self._first(allow_long)
        if first is None:
            return []
        room = float(self._room)
        if first.reach <= self._budget:
            self._small_until = self.done + AFTER_SMALL * self._budget
        elif self.done < self._small_until:
            room *= PART_AFTER_SMALL
        if lanes > 1:
            room = min(room, math.ceil(sum(work.cost for work in self._work.values()) / lanes))
        self._leave(first)
        taken = [first, *self._fill(first, room)]
        self.done += sum(entry.cost for entry in taken)
        return taken

    def has_next(self, allow_long: bool = True) -> bool:
        """Whether `take` would return entries."""
        return self._first(allow_long) is not None

    def _fill(self, first: Entry, room: float) -> Iterator[Entry]:
        """Remove and return what shares the pass of `first`, in the order of keys.

        What does not fit is tried again after each that does: a larger pass may have more padding.
        """
        last = first.place + max(self._budget, first.reach)
        count, longest, total = 1, len(first.ids), len(first.ids)
        heads = [
            heap[0]
            for tokens in first.shape.near(longest)
            if (heap := self._by_length.get((first.shape, tokens))) and _settle(heap)
        ]
        heapq.heapify(heads)
        passed: list[_Waiting] = []
        while heads and heads[0].key <= last:
            head = heapq.heappop(heads)
            tokens = len(head.entry.ids)
            size = (count + 1) * max(longest, tokens)
            padding = size - total - tokens
            if size > room or padding > max(FREE_PADDING, MAX_PADDING * size):
                passed.append(head)
                continue
            count, longest, total = count + 1, max(longest, tokens), total + tokens
            self._leave(head.entry)
            yield head.entry
            for waiting in passed:
                heapq.heappush(heads, waiting)
            passed.clear()
            if heap := self._by_length.get((first.shape, tokens)):
                heapq.heappush(heads, heap[0])

    def _first(self, allow_long: bool) -> Entry | None:
        heads = [h for h in (self._short, self._long if allow_long else []) if _settle(h)]
        return min(heads, key=lambda heap: heap[0])[0].entry if heads else None

    def _leave(self, entry: Entry) -> None:
        entry.waiting = False
        self._count(entry, -1)
        key = (entry.shape, len(entry.ids))
        if not _settle(self._by_length[key]):
            del self._by_length[key]

    def _count(self, entry: Entry, sign: int) -> None:
        place = (entry.shape, self._budgets(entry.place))
        self._work[entry.shape].count(entry, sign)
        self._places[place].count(entry, sign)
        if not self._places[place].depth:
            del self._places[place]

    def _budgets(self, key: float) -> int:
        return int(key // self._budget)

    def _sweep(self) -> None:
        """Drop what has left from the heaps once it is most of them: memory stays bounded."""
        heaps = [self._short, self._long, *self._by_length.values()]
        if sum(map(len, heaps)) > 4 * len(self) + 1024:
            for heap in heaps:
                heap[:] = [w for w in heap if w.entry.waiting]
                heapq.heapify(heap)


def _settle(heap: list[_Waiting]) -> bool:
    """Drop entries that have left from the top; whether any is left."""
    while heap and not heap[0].entry.waiting:
        heapq.heappop(heap)
    return bool(heap)
