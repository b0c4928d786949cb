"""Asks a pass that runs to end: Stop. The loop asks, the lane's thread binds."""

from __future__ import annotations

import time
from collections.abc import Callable


class Stop:
    """Asks a pass that runs to end. The loop asks, the lane's thread binds."""

    def __init__(self) -> None:
        self.asked: float | None = None  # when, by time.monotonic
        self._end: Callable[[], None] | None = None

    def bind(self, end: Callable[[], None]) -> None:
        """Call `end` when the stop is asked for, or now if it already was."""
        self._end = end
        if self.asked is not None:
            end()

    def ask(self) -> None:
        """End the pass as soon as it can."""
        if self.asked is None:
            self.asked = time.monotonic()
        if self._end is not None:
            self._end()
