"""Inference threads: each runs one pass at a time and hands back what came of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

P = TypeVar("P")
R = TypeVar("R")
# Names of threads begin with these; the last two are those of Slicers.
THREADS, TOKENIZER, RENDERER = "inference_", "tokenizer_", "renderer_"


class Lanes(Generic[P, R]):
    """Threads that call `run` with a pass, and `done` on the event loop with it and the result.

    Threads of their own and no executor: a result is handed over in one step, a lane that never
    comes back does not keep the process from ending, and the lane that was free last works first:
    a lone request after another finds the caches and the core it had (three quarters of the time
    of lanes that take turns). `run` must not raise. `start` is the event loop's.
    """

    def __init__(
        self,
        count: int,
        run: Callable[[P], R],
        done: Callable[[P, R], None],
        name: str = THREADS,
    ) -> None:
        self._run, self._done = run, done
        self._lanes: list[SimpleQueue[tuple[asyncio.AbstractEventLoop, P] | None]] = [
            SimpleQueue() for _ in range(count)
        ]
        self._free = [*self._lanes]
        self._threads = [
            threading.Thread(target=self._serve, args=(lane,), name=f"{name}{i}", daemon=True)
            for i, lane in enumerate(self._lanes)
        ]
        for thread in self._threads:
            thread.start()

    def start(self, work: P) -> None:
        """Give a pass to a free lane: there must be one."""
        self._free.pop().put((asyncio.get_running_loop(), work))

    def close(self, grace: float) -> None:
        """Let each thread end after the pass it runs; wait for that, at most `grace` seconds."""
        for lane in self._lanes:
            lane.put(None)
        until = time.monotonic() + grace
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _serve(self, lane: SimpleQueue[tuple[asyncio.AbstractEventLoop, P] | None]) -> None:
        while (item := lane.get()) is not None:
            loop, work = item
            result = self._run(work)
            try:
                loop.call_soon_threadsafe(self._finish, lane, work, result)
            except RuntimeError:  # the loop has ended: nobody waits
                return
            del item, work, result  # nothing is held while the lane is idle

    def _finish(
        self, lane: SimpleQueue[tuple[asyncio.AbstractEventLoop, P] | None], work: P, result: R
    ) -> None:
        self._free.append(lane)
        self._done(work, result)
