"""Ends a request when its client leaves or its deadline passes: Cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from embedserve.errors import ClientLeftError, RequestError

T = TypeVar("T")


class Cancellation:
    """Whether somebody still waits for an answer: the client, within its deadline.

    Owned by the event loop; `end` must be called.
    """

    def __init__(self, gone: asyncio.Future[None], deadline: float) -> None:
        """`gone` is done once the client has left; `deadline` by the loop's clock."""
        self._loop = asyncio.get_running_loop()
        self._gone = gone
        self._deadline = deadline
        self._timer: asyncio.TimerHandle | None = None

    def check(self) -> None:
        """ClientLeftError or 504 when nobody waits any more."""
        if self._gone.done():
            raise ClientLeftError
        if self._loop.time() > self._deadline:
            raise deadline_exceeded()

    async def wait(self, work: asyncio.Future[T]) -> T:
        """Wait for something that runs elsewhere; what has not begun when nobody waits never will.

        ClientLeftError or 504 at once, and not when its turn would have come.
        """
        seconds = max(0.0, self._deadline - self._loop.time())
        try:
            await asyncio.wait(
                (work, self._gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            is_done = work.done() or not work.cancel()
        if not is_done:
            raise ClientLeftError if self._gone.done() else deadline_exceeded()
        result = work.result()
        self.check()
        return result

    def left(self) -> float:
        """Seconds until the deadline; 504 when none are left."""
        seconds = self._deadline - self._loop.time()
        if seconds <= 0:
            raise deadline_exceeded()
        return seconds

    def watch(self, fail: Callable[[Exception], None]) -> None:
        """Call `fail` once when the client leaves or the deadline passes."""
        self.check()
        self._gone.add_done_callback(lambda _: fail(ClientLeftError()))
        self._timer = self._loop.call_at(self._deadline, lambda: fail(deadline_exceeded()))

    def end(self) -> None:
        """Watch no longer."""
        self._gone.cancel()
        if self._timer is not None:
            self._timer.cancel()


def deadline_exceeded() -> RequestError:
    """The error for a request whose deadline has passed (504)."""
    return RequestError("deadline_exceeded", "the request's deadline passed before its answer")


def draining() -> RequestError:
    """The error for a request that the end of the server cuts off (503)."""
    return RequestError("draining", "the server is shutting down", headers={"Retry-After": "1"})
