"""Bytes of the requests in flight, bodies and answers: bounded over all of them."""

from __future__ import annotations

from collections.abc import Callable

from embedserve.errors import RequestError

# A body is held as its pieces, as a whole, and as its texts.
BODY_COPIES = 3
# A vector is held as float32 while it is computed, and as JSON of up to 13 bytes a component.
ANSWER_COPIES = 5
EBB_BYTES = 16_000_000


class Pending:
    """How many bytes all requests hold, at most `limit`. Owned by the event loop.

    `on_ebb` is called when next to nothing is held after much was.
    """

    def __init__(self, limit: int, on_ebb: Callable[[], object] = lambda: None) -> None:
        self.bytes = 0
        self._limit = limit
        self._on_ebb = on_ebb
        self._peak = 0

    def check(self, share: Share, count: int) -> None:
        """429 when `count` more do not fit beside the others. A request alone always fits."""
        if self.bytes + count > self._limit and self.bytes > share.bytes:
            raise RequestError(
                "queue_full",
                f"requests in flight hold {self.bytes >> 20} MiB of {self._limit >> 20}; try again "
                "later",
                headers={"Retry-After": "1", "retry-after-ms": "1000", "Connection": "close"},
            )

    def change(self, count: int) -> None:
        """Hold `count` more, or less."""
        self.bytes += count
        self._peak = max(self._peak, self.bytes)
        if count < 0 and self._peak > EBB_BYTES and self.bytes < self._peak // 8:
            self._peak = 0
            self._on_ebb()


class Share:
    """What one request holds; given back when its answer is sent. Owned by the event loop."""

    def __init__(self, pending: Pending) -> None:
        self.bytes = 0
        self._pending = pending

    def add(self, count: int) -> None:
        """Hold `count` more; RequestError when they do not fit."""
        self._pending.check(self, count)
        self.bytes += count
        self._pending.change(count)

    def release(self) -> None:
        """Hold nothing any more."""
        self._pending.change(-self.bytes)
        self.bytes = 0
