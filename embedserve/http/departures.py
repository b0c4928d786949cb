"""Notices clients that leave while nothing is read from them."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

SECONDS = 0.1  # between two looks
# The client has shut down its side; errors and resets are reported unasked. Linux only.
_LEFT = getattr(select, "POLLRDHUP", 0)


class Departures:
    """The sockets that are not read. Owned by the event loop.

    While reading is paused, the event loop does not notice that the client has closed.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._poll_one = select.poll()
        self._watched: dict[int, Callable[[], object]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, descriptor: int, on_left: Callable[[], object]) -> None:
        """Call `on_left` once the client has left; `forget` before the descriptor is closed."""
        self._watched[descriptor] = on_left
        self._poll.register(descriptor, _LEFT)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SECONDS, self._look)

    def forget(self, descriptor: int) -> None:
        """Watch it no longer."""
        if self._watched.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def is_reset(self, descriptor: int) -> bool:
        """Whether the client has reset a connection that is not watched."""
        self._poll_one.register(descriptor, 0)
        left = self._poll_one.poll(0)
        self._poll_one.unregister(descriptor)
        return bool(left)

    def _look(self) -> None:
        self._timer = None
        for descriptor, _ in self._poll.poll(0):
            on_left = self._watched[descriptor]
            self.forget(descriptor)
            on_left()
        if self._watched:
            self._timer = asyncio.get_running_loop().call_later(SECONDS, self._look)
