"""Requests in the engine, and who reads which row: equal sequences in flight are computed once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from embedserve.arrays.types import Floats, Ints
from embedserve.engine.admission import Ahead
from embedserve.engine.batch_queue import Entry
from embedserve.engine.cache import Key
from embedserve.model.cost import Shape


@dataclass(slots=True, eq=False)
class Job:
    """One request in the engine. Owned by the event loop.

    `future` resolves to rows (n, dim) float32 when the last one is there.
    """

    rows: Floats
    future: asyncio.Future[Floats]
    submitted: float
    remaining: int
    entries: list[Entry] = field(default_factory=list)
    ahead: Ahead | None = None  # None: every row was cached or is being computed
    started: float | None = None  # when its first pass began
    reached: float = 0.0  # the work done when its last pass so far began, that pass included
    finished: float = 0.0

    def fill(self, row: int, values: Floats, now: float) -> None:
        """Put one row in its place; with the last one the request is answered."""
        self.rows[row] = values
        self.remaining -= 1
        if self.remaining == 0 and not self.future.done():
            self.finished = now
            self.future.set_result(self.rows)

    def fail(self, error: Exception) -> None:
        """End the request with an error, unless it has ended."""
        if not self.future.done():
            self.future.set_exception(error)


class InFlight:
    """The sequences that wait or run, by what determines their vectors. Owned by the event loop."""

    def __init__(self) -> None:
        self._entries: dict[Key, Entry] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def join(self, job: Job, shape: Shape, sequences: Iterable[tuple[int, Key, Ints]]) -> None:
        """Make `job` read the row of each sequence (row, key, ids)."""
        for row, key, ids in sequences:
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = Entry(ids, shape, key)
            if not (entry.readers and entry.readers[-1][0] is job):  # else a text that came twice
                job.entries.append(entry)
            entry.readers.append((job, row))

    def forget(self, entry: Entry) -> None:
        """Forget a sequence that is done; the next request for it computes it again."""
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]


def is_wanted(entry: Entry) -> bool:
    """Whether anybody still waits for the row."""
    return any(not job.future.done() for job, _ in entry.readers)
