"""Work in slices: in its turn, for those who wait, and what it keeps is counted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from embedserve.engine.admission import Pace
from embedserve.engine.offload import SLICE_SECONDS, Slicer
from embedserve.errors import RequestError
from embedserve.model.steps import Step, Steps, Task

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]
SECONDS = 10  # what no test should take


class Clock:
    """Each look takes most of a slice: two steps are more than one."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.6 * SLICE_SECONDS
        return self.now


class Bench:
    """A slicer, and what its tasks did in which order."""

    def __init__(self, threads: int = 1) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.began = threading.Event()
        self.done: list[str] = []
        self.pace = Pace(1.0, SLICE_SECONDS)
        self.slicer = Slicer("slicer_", 1, self.pace, threads, Clock())

    def task(self, name: str, steps: int) -> Task[str]:
        """Work of so many steps, a unit and a byte each."""

        def work() -> Steps[str]:
            for _ in range(steps):
                self.began.set()
                assert self.gate.wait(SECONDS)
                self.done.append(name)
                yield Step(1, 1)
            return name

        return Task("kind", steps, work())


@pytest.fixture
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """One of a thread, or of as many as the test names."""
    made = Bench(getattr(request, "param", 1))
    yield made
    made.gate.set()
    made.slicer.close(SECONDS)


async def test_small_work_goes_between_the_slices_of_large(bench: Bench) -> None:
    """It came later and is done first; the large is whole all the same."""
    bench.gate.clear()
    large = bench.slicer.start(bench.task("large", 20))
    await asyncio.to_thread(bench.began.wait)
    small = bench.slicer.start(bench.task("small", 1))
    bench.gate.set()
    assert list(await asyncio.gather(large, small)) == ["large", "small"]
    assert bench.done.index("small") <= 3
    assert bench.done.count("large") == 20


async def test_what_nobody_waits_for_ends_with_its_step(bench: Bench) -> None:
    """And what waits for its turn never begins; nothing of it is left in the wait."""
    bench.gate.clear()
    runs = bench.slicer.start(bench.task("runs", 100))
    waits = bench.slicer.start(bench.task("waits", 100))
    await asyncio.to_thread(bench.began.wait)
    assert bench.slicer.wait() == 200
    runs.cancel()
    waits.cancel()
    await asyncio.sleep(0)
    assert bench.slicer.wait() == 0
    bench.gate.set()
    assert await bench.slicer.start(bench.task("next", 1)) == "next"
    assert bench.done in (["runs", "next"], ["next"])


@pytest.mark.parametrize("bench", [2], indirect=True)
async def test_two_threads_do_two_tasks_at_once(bench: Bench) -> None:
    """Never two steps of one; what waits is shared by both."""
    meeting = threading.Barrier(2)
    inside: list[str] = []

    def work(name: str) -> Steps[str]:
        for _ in range(5):
            assert name not in inside
            inside.append(name)
            meeting.wait(SECONDS)
            inside.remove(name)
            yield Step(10)
        return name

    tasks = [bench.slicer.start(Task("kind", 50, work(name))) for name in "ab"]
    assert bench.slicer.wait() == 50
    assert list(await asyncio.gather(*tasks)) == ["a", "b"]
    assert bench.slicer.wait() == 0


async def test_what_it_keeps_is_told_and_may_be_refused(bench: Bench) -> None:
    """After each slice; what is raised ends the task."""
    held: list[int] = []
    await bench.slicer.start(bench.task("a", 5), held.append)
    assert sum(held) == 5
    assert len(held) > 1

    def refuse(count: int) -> None:
        raise RequestError("queue_full", "no room")

    with pytest.raises(RequestError, match="no room"):
        await bench.slicer.start(bench.task("b", 100), refuse)
    assert await bench.slicer.start(bench.task("c", 1)) == "c"
    assert bench.done.count("b") < 100


async def test_errors_come_back(bench: Bench) -> None:
    """Of a step, to who waits for it; the next is done."""

    def failing() -> Steps[None]:
        yield Step(1)
        raise ValueError("seven")

    with pytest.raises(ValueError, match="seven"):
        await bench.slicer.start(Task("kind", 2, failing()))
    assert await bench.slicer.start(bench.task("next", 1)) == "next"


def test_the_pace_is_learned_from_slices() -> None:
    """Quickly when they take longer, more slowly when less, by kind."""
    pace = Pace(1.0, SLICE_SECONDS)
    for _ in range(20):
        pace.learn("slow", 1, 9.0)
    assert pace.seconds({"slow": 2}) == pytest.approx(18, rel=0.01)
    assert pace.seconds({"other": 2}) == 2
    pace.learn("slow", 1, 1.0)
    assert pace.seconds({"slow": 1}) > 8
    pace.learn("slow", 1_000, SLICE_SECONDS / 1e6)  # a short one says little
    assert pace.seconds({"slow": 1}) > 8
