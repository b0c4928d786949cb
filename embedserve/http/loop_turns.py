"""Connections with more to do than others wait here; a few go on in each turn of the loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

EACH = 16  # of a fraction of a millisecond each


class LoopTurns:
    """What waits for a later turn of the loop, first come first served. Owned by the event loop.

    However many connections send without end, a turn stays short: others are accepted, read and
    answered between them.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], object]] = deque()

    def wait(self, call: Callable[[], object]) -> None:
        """Call `call` in a later turn."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._serve)
        self._waiting.append(call)

    def _serve(self) -> None:
        for _ in range(min(EACH, len(self._waiting))):
            self._waiting.popleft()()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._serve)
