"""Bytes of the requests in flight, bodies and answers: bounded over all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from embedserve.errors import RequestError

# A body is held twice: as it arrived, and as the parser's copy. Its texts are counted by character
# width.
BODY_COPIES = 2
# A component takes 4 bytes as float32 and up to 13 as JSON, plus what the JSON needs to grow. A
# text takes some objects in the queue and in a pass.
_COMPONENT_BYTES = 20
_ENTRY_BYTES = 1_000
EBB_BYTES = 16_000_000
# Requests up to this size count as small: some 100 short texts and their answer.
SMALL_BYTES = 1_000_000
# This part of the limit is for small requests alone: large ones cannot shut them out.
_RESERVED = 8
# A body makes progress if this many bytes arrive in this time. A slower one is dropped, but only
# when another request needs its memory.
PROGRESS_BYTES = 65_536
PROGRESS_SECONDS = 1.0


class MemoryBudget:
    """How many bytes all requests hold, at most `limit`. Owned by the event loop.

    The last eighth is for small requests. A large request is accepted, whatever it holds, while all
    others together hold at most that eighth. So all hold at most `limit`, or the largest and an
    eighth of `limit`.
    `on_ebb` is called when next to nothing is held after much was.
    """

    def __init__(
        self,
        limit: int,
        on_ebb: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bytes = 0
        self.clock = clock
        self._limit = limit
        self._reserved = reserved(limit)
        self._small_bytes = min(SMALL_BYTES, self._reserved // 8)
        self._small = 0  # what small requests hold
        self._on_ebb = on_ebb
        self._peak = 0
        self._arrivals: set[Arrival] = set()

    def make_room(self, reservation: Reservation, count: int) -> None:
        """Give up stalled bodies until `reservation` can hold `count`; 429 when it cannot."""
        while not self._fits(reservation, count):
            stalled = largest_stalled(self._arrivals - {reservation.arrival}, self.clock())
            if stalled is None:
                raise RequestError(
                    "queue_full",
                    f"requests in flight hold {self.bytes >> 20} MiB of {self._limit >> 20}; try "
                    "again later",
                    headers={"Retry-After": "1", "retry-after-ms": "1000", "Connection": "close"},
                )
            self._arrivals.discard(stalled)
            stalled.reservation.release()
            stalled.give_up()

    def change(self, before: int, after: int) -> None:
        """Record that one request holds `after` bytes instead of `before`."""
        if before <= self._small_bytes:
            self._small -= before
        if after <= self._small_bytes:
            self._small += after
        self.bytes += after - before
        self._peak = max(self._peak, self.bytes)
        if after < before and self._peak > EBB_BYTES and self.bytes < self._peak // 8:
            self._peak = 0
            self._on_ebb()

    def arrives(self, arrival: Arrival) -> None:
        """A body begins to arrive that does not come in one piece."""
        self._arrivals.add(arrival)

    def has_arrived(self, arrival: Arrival) -> None:
        """It is whole, or nobody waits for the rest."""
        self._arrivals.discard(arrival)

    def _fits(self, reservation: Reservation, count: int) -> bool:
        others = self.bytes - reservation.bytes
        if others + count <= self._limit - self._reserved:
            return True
        if count > self._small_bytes:
            return others <= self._reserved
        small = self._small - (reservation.bytes if reservation.bytes <= self._small_bytes else 0)
        return others + count <= self._limit or small + count <= self._reserved


class Reservation:
    """What one request holds; given back when its answer is sent. Owned by the event loop."""

    def __init__(self, budget: MemoryBudget) -> None:
        self.bytes = 0
        self.arrival: Arrival | None = None
        self._budget = budget

    def add(self, count: int) -> None:
        """Hold `count` more; RequestError when they do not fit."""
        self.hold(self.bytes + count)

    def hold(self, count: int) -> None:
        """Hold `count` in all, which may be less than before; RequestError when they do not fit."""
        if count > self.bytes:
            self._budget.make_room(self, count)
        self._budget.change(self.bytes, count)
        self.bytes = count

    def release(self) -> None:
        """Hold nothing any more."""
        self._budget.change(self.bytes, 0)
        self.bytes = 0

    def arrives(self, give_up: Callable[[], object]) -> Arrival:
        """The request's body begins to arrive; `give_up` ends that."""
        self.arrival = Arrival(self, give_up, self._budget.clock)
        self._budget.arrives(self.arrival)
        return self.arrival

    def has_arrived(self) -> None:
        """The body is whole, or nobody waits for the rest."""
        if self.arrival is not None:
            self._budget.has_arrived(self.arrival)
            self.arrival = None


class Arrival:
    """A body on its way. Owned by the event loop."""

    def __init__(
        self, reservation: Reservation, give_up: Callable[[], object], clock: Callable[[], float]
    ) -> None:
        self.reservation = reservation
        self.give_up = give_up
        self._clock = clock
        self._progressed = clock()
        self._since = 0  # bytes since then
        self._is_slow = False  # its last PROGRESS_BYTES took too long

    def brings(self, count: int) -> None:
        """`count` more bytes came."""
        self._since += count
        if self._since >= PROGRESS_BYTES:
            now = self._clock()
            self._is_slow = now - self._progressed >= PROGRESS_SECONDS
            self._progressed, self._since = now, 0

    def is_stalled(self, now: float) -> bool:
        """Whether PROGRESS_BYTES take it PROGRESS_SECONDS or longer."""
        return self._is_slow or now - self._progressed >= PROGRESS_SECONDS


def largest_stalled(arrivals: Iterable[Arrival], now: float) -> Arrival | None:
    """Return the body to give up first: the largest of those that make no progress."""
    stalled = (arrival for arrival in arrivals if arrival.is_stalled(now))
    return max(stalled, key=lambda arrival: arrival.reservation.bytes, default=None)


def answer_bytes(dimension: int) -> int:
    """What a text's place in the queue and its vector take until the answer is sent."""
    return _ENTRY_BYTES + _COMPONENT_BYTES * dimension


def reserved(limit: int) -> int:
    """Bytes of `limit` that are for small requests alone."""
    return limit // _RESERVED
