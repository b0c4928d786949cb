"""Rows that were computed, by model fingerprint and token ids; bounded in bytes.

Exact on a CPU, where a sequence's vector has the same bits in any company.
"""

from __future__ import annotations

from collections import OrderedDict

from embedserve.arrays.types import Floats

# A model's fingerprint and a sequence's token ids as bytes.
Key = tuple[str, bytes]

# What a row costs beside its numbers and ids: the objects of dictionary, key and array (measured).
_ENTRY_BYTES = 500


class VectorCache:
    """Least recently used rows (dim,) float32. Owned by the event loop; not thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rows: OrderedDict[Key, Floats] = OrderedDict()
        self.size = 0  # bytes

    def get(self, key: Key) -> Floats | None:
        """Return the row, or None."""
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
        return row

    def put(self, key: Key, row: Floats) -> None:
        """Keep a copy of the row, and drop the longest unused ones for it."""
        size = _bytes(key, row)
        if size > self._limit or key in self._rows:
            return
        # A copy: the row is a view of its whole pass.
        self._rows[key] = row.copy()
        self.size += size
        while self.size > self._limit:
            self.size -= _bytes(*self._rows.popitem(last=False))


def _bytes(key: Key, row: Floats) -> int:
    return len(key[1]) + row.nbytes + _ENTRY_BYTES
