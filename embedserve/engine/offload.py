"""The tokenizer's and the renderer's threads: slices, each request's in its turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from embedserve.engine.admission import Pace
from embedserve.engine.cancellation import draining
from embedserve.engine.lanes import RENDERER, TOKENIZER, Lanes
from embedserve.engine.turns import Turn, Turns
from embedserve.model.steps import Step, Steps, Task

# After this many seconds of one request's work another has its turn.
SLICE_SECONDS = 0.05
# Before anything was measured: seconds to tokenize a character (English takes 0.7 us, the worst
# 9.5), and to render a component (JSON).
TOKENIZER_PACE, RENDERER_PACE = 1e-6, 8e-8
# How exactly the work ahead is known, in characters and components: about a slice.
TOKENIZER_GRAIN, RENDERER_GRAIN = 50_000, 500_000
T = TypeVar("T")


class Offload:
    """`tokenizers` threads that tokenize, and one that renders big answers.

    Rendering never waits for tokenizing. Owned by the event loop; not thread-safe.
    """

    def __init__(self, tokenizers: int = 1) -> None:
        pace = Pace(TOKENIZER_PACE, SLICE_SECONDS)
        self._tokenizer = Slicer(TOKENIZER, TOKENIZER_GRAIN, pace, tokenizers)
        self._renderer = Slicer(RENDERER, RENDERER_GRAIN, Pace(RENDERER_PACE, SLICE_SECONDS))
        self._closed = False

    def tokenize(self, task: Task[T], hold: Callable[[int], None]) -> asyncio.Future[T]:
        """Tokenize in the request's turn; `hold` as in Slicer.start."""
        self._check_open()
        return self._tokenizer.start(task, hold)

    def render(self, task: Task[T]) -> asyncio.Future[T]:
        """Render a big answer."""
        self._check_open()
        return self._renderer.start(task)

    def soon(self, function: Callable[[], None]) -> None:
        """Run something that nobody waits for."""
        if not self._closed:
            self._renderer.start(Task(None, 1, _one_step(function)))

    def tokenizer_wait_before(self, characters: int) -> float:
        """Seconds that a request of this many characters would wait for a tokenizing thread."""
        return self._tokenizer.wait_before(characters)

    def tokenizer_wait(self) -> float:
        """Seconds until everything that waits now is tokenized."""
        return self._tokenizer.wait()

    def close(self) -> None:
        """Cancel all that waits; each thread ends after its step."""
        self._closed = True
        for slicer in (self._renderer, self._tokenizer):
            slicer.close(SLICE_SECONDS)

    def _check_open(self) -> None:
        if self._closed:
            raise draining()


def _one_step(function: Callable[[], None]) -> Steps[None]:
    function()
    yield Step(1)


@dataclass(slots=True, eq=False)
class _Started:
    """A task that waits or runs in slices, its future, and the callback that charges its memory."""

    task: Task[Any]
    future: asyncio.Future[Any]
    turn: Turn
    hold: Callable[[int], None]
    wanted: bool = True  # read by the thread between two steps


@dataclass(slots=True)
class _Slice:
    """What the thread gives back."""

    cost: int = 0
    held: int = 0
    seconds: float = 0.0
    ended: bool = False
    result: Any = None
    error: BaseException | None = None


class Slicer:
    """Threads and the work that waits for them. Owned by the event loop; not thread-safe.

    `pace`: how many seconds a unit takes in a thread, learned from each slice. A task is in one
    thread at a time.
    """

    def __init__(
        self,
        name: str,
        grain: int,
        pace: Pace,
        threads: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._turns = Turns(grain)
        self._pace = pace
        self._clock = clock
        self._started: dict[Turn, _Started] = {}
        self._threads = self._free = threads
        self._closed = False
        self._lanes = Lanes(threads, self._run, self._done, name)

    def start(
        self, task: Task[T], hold: Callable[[int], None] = lambda held: None
    ) -> asyncio.Future[T]:
        """Do a task in its turn.

        Cancelling the future removes the task; a slice that runs ends after its current step.

        `hold` is called on the loop with the bytes that each slice keeps; what it raises ends the
        task.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        started = _Started(task, future, self._turns.put(task.kind, max(1, task.cost)), hold)
        self._started[started.turn] = started
        future.add_done_callback(lambda _: self._forget(started))
        self._pump()
        return future

    def wait_before(self, cost: int) -> float:
        """Seconds that a task of `cost` units would wait for its first slice."""
        return 0.0 if self._free else self._seconds(self._turns.before(cost))

    def wait(self) -> float:
        """Seconds until all that waits now is done."""
        return self._seconds(self._turns.waiting()) if self._turns else 0.0

    def close(self, grace: float) -> None:
        """Cancel all that waits; a thread ends with the step it does, waited for `grace` s."""
        self._closed = True
        for started in list(self._started.values()):
            started.future.cancel()
            self._forget(started)
        self._lanes.close(grace)

    def _seconds(self, work: Mapping[Hashable, int]) -> float:
        """Seconds that all threads take for it together."""
        return self._pace.seconds(work) / self._threads

    def _pump(self) -> None:
        while self._free and not self._closed and (turn := self._turns.take()) is not None:
            started = self._started[turn]
            if started.future.done():
                self._forget(started)
                continue
            self._free -= 1
            self._lanes.start(started)

    def _run(self, started: _Started) -> _Slice:
        """In a thread: steps until the slice is over."""
        done = _Slice()
        start = self._clock()
        try:
            while started.wanted and done.seconds < SLICE_SECONDS:
                step = next(started.task.steps)
                done.cost += step.cost
                done.held += step.held
                done.seconds = self._clock() - start
        except StopIteration as end:
            done.ended, done.result = True, end.value
        except BaseException as error:  # also a panic of a library in Rust
            done.ended, done.error = True, error
        return done

    def _done(self, started: _Started, done: _Slice) -> None:
        self._free += 1
        future = started.future
        if done.ended or future.done():
            self._turns.leave(started.turn)
        self._turns.advance(started.turn, done.cost)
        self._pace.learn(started.task.kind, done.cost, done.seconds)
        self._pump()  # the threads first: they work while the loop goes on
        if future.done():
            return
        if done.error is not None:
            future.set_exception(done.error)
            return
        try:
            started.hold(done.held)
        except Exception as error:  # there is no room for what it keeps
            future.set_exception(error)
            return
        if done.ended:
            future.set_result(done.result)

    def _forget(self, started: _Started) -> None:
        """Take out what is done, or unwanted; a slice that runs ends with its step."""
        started.wanted = False
        self._turns.leave(started.turn)
        self._started.pop(started.turn, None)
