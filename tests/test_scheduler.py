"""The scheduler, with a fake backend: rows, refusals and failures of each request."""

from __future__ import annotations

import asyncio
import threading
from asyncio import Future
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest

from embedserve.arrays.batch import Batch
from embedserve.arrays.types import Floats, Ints
from embedserve.engine.batch_queue import LONG_PASS_BUDGETS
from embedserve.engine.cache import VectorCache
from embedserve.engine.jobs import Job
from embedserve.engine.scheduler import SHRUNK_SECONDS, Scheduler
from embedserve.errors import DeviceLostError, RequestError
from embedserve.metrics import Metrics
from embedserve.model.cost import Shape
from embedserve.model.encoder import Encoder
from embedserve.model.steps import Step, Steps, Task
from embedserve.model.stop import Stop

T = TypeVar("T")
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]
SECONDS = 10  # what no test should take: a lost event fails instead of hanging
NAN, ZERO, INFINITE, FAILS = 901, 902, 903, 904  # ids that spoil a vector or a pass


class FakeBackend:
    """Waits at a gate, then answers each text with [first id, last id, number of ids].

    `seen` holds the texts of each pass that began, in order.
    """

    def __init__(self, on_pass: Callable[[], None] = lambda: None) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.one_at_a_time = False  # the gate closes behind each pass
        self.seen: list[list[tuple[int, ...]]] = []
        self.stops: list[Stop] = []  # of each pass
        self.alone: list[bool] = []  # of each pass: whether it may use every core
        self.on_pass = on_pass
        self.memory = 1_000_000  # tokens of a pass for which there is memory
        self._began = threading.Semaphore(0)

    def embed(self, batch: Batch, alone: bool = False, stop: Stop | None = None) -> Floats:
        texts = [
            tuple(ids[mask == 1].tolist())
            for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
        ]
        self.seen.append(texts)
        self.stops.append(stop or Stop())
        self.alone.append(alone)
        self._began.release()
        assert self.gate.wait(SECONDS), "nobody opened the gate"
        if self.one_at_a_time:
            self.gate.clear()
        self.on_pass()
        if batch.input_ids.size > self.memory:
            raise MemoryError("bad_alloc")
        if any(FAILS in ids for ids in texts):
            raise RuntimeError("secret of the library")
        return np.array([self._row(ids) for ids in texts], np.float32)

    @staticmethod
    def _row(ids: tuple[int, ...]) -> list[float]:
        spoiled: dict[int, list[float]] = {
            NAN: [1, np.nan, 1],
            ZERO: [0, 0, 0],
            INFINITE: [1, np.inf, 1],
        }
        return spoiled.get(ids[0], [ids[0], ids[-1], len(ids)])

    async def passes(self, count: int) -> None:
        """Wait until `count` more passes have begun."""
        for _ in range(count):
            assert await asyncio.to_thread(self._began.acquire, timeout=SECONDS), "no pass began"

    @property
    def texts(self) -> list[tuple[int, ...]]:
        """All texts that reached the backend."""
        return [text for texts in self.seen for text in texts]


class Bench:
    """A scheduler over one fake model, or over another with `encoder`."""

    def __init__(
        self,
        lanes: int = 1,
        tokens_per_pass: int = 64,
        max_wait: float = 1e9,
        clock: Callable[[], float] | None = None,
        on_pass: Callable[[], None] = lambda: None,
        padding_side: str = "right",
        cache: VectorCache | None = None,
    ) -> None:
        self.backend = FakeBackend(on_pass)
        self.shape = Shape("fake", quadratic=1e12)  # a text costs its tokens
        self.encoder = Encoder("fake", "f" * 64, self.backend, self.shape, 3, 7, padding_side)
        engines = {"fake": self.encoder}
        self.metrics = Metrics()
        options: dict[str, Any] = {} if clock is None else {"clock": clock}
        self.scheduler = Scheduler(
            engines, lanes, tokens_per_pass, max_wait, self.metrics, cache, **options
        )

    def submit(self, *texts: list[int]) -> Job:
        """Queue one request of these texts."""
        return self.scheduler.submit(self.encoder, [np.array(ids, np.int64) for ids in texts])

    def encode(self, function: Callable[[], T], cost: int = 1, most: float = 1e9) -> Future[T]:
        """Tokenize by calling a function, which takes the place of one step."""

        def steps() -> Steps[T]:
            result = function()
            yield Step(cost)
            return result

        return self.scheduler.encode(Task("fake", cost, steps()), most, lambda held: None)

    async def block(self, length: int = 50) -> Job:
        """Occupy a lane until the gate is opened."""
        self.backend.gate.clear()
        job = self.submit([800] * length)
        await self.backend.passes(1)
        return job

    def metric(self, name: str) -> float:
        """A series' value for the fake model."""
        return self.metrics.registry.get_sample_value(f"embedserve_{name}", {"model": "fake"}) or 0


Made = Callable[..., Bench]


@pytest.fixture
async def made() -> AsyncIterator[Made]:
    """Makes benches and closes them; a callback's exception, which asyncio only logs, fails."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, found: complaints.append(found))
    benches: list[Bench] = []

    def make(*arguments: Any, **options: Any) -> Bench:
        benches.append(Bench(*arguments, **options))
        return benches[-1]

    yield make
    for bench in benches:
        bench.scheduler.close()
    assert not complaints


async def rows_of(job: Job) -> list[list[float]]:
    """The rows of a request that succeeds."""
    rows = await job.future
    assert rows.dtype == np.float32
    return [[float(value) for value in row] for row in rows]


async def error_of(job: Job) -> RequestError:
    """The error of a request that fails."""
    with pytest.raises(RequestError) as error:
        await job.future
    return error.value


class TestRows:
    """Every text's row reaches its place."""

    @pytest.mark.parametrize("side", ["right", "left"])
    @pytest.mark.parametrize("lanes", [1, 3])
    async def test_rows_arrive_in_the_order_of_the_texts(
        self, lanes: int, side: str, made: Made
    ) -> None:
        """60 texts of all lengths, in many passes of mixed order: row i answers text i."""
        bench = made(lanes, tokens_per_pass=32, padding_side=side)
        lengths = np.random.default_rng(1).integers(1, 40, 60)
        texts = [[1000 + i] * int(t) for i, t in enumerate(lengths)]
        rows = await rows_of(bench.submit(*texts))
        assert rows == [[1000 + i, 1000 + i, int(t)] for i, t in enumerate(lengths)]
        assert len(bench.backend.seen) > 20
        assert sorted(bench.backend.texts) == sorted(map(tuple, texts))

    async def test_requests_that_share_a_pass_get_their_own_rows(self, made: Made) -> None:
        """One pass, four requests, each answered with its texts alone."""
        bench = made()
        blocker = await bench.block()
        jobs = [bench.submit([10 * i, 1, 2, 3], [10 * i + 1, 1, 2, 3]) for i in range(1, 5)]
        bench.backend.gate.set()
        for i, job in enumerate(jobs, 1):
            assert await rows_of(job) == [[10 * i, 3, 4], [10 * i + 1, 3, 4]]
        await blocker.future
        assert [len(texts) for texts in bench.backend.seen] == [1, 8]

    async def test_lanes_run_at_the_same_time(self, made: Made) -> None:
        """Three lanes have three passes in flight, and no fourth."""
        bench = made(lanes=3)
        bench.backend.gate.clear()
        jobs = [bench.submit([i] * 50) for i in range(1, 5)]
        await bench.backend.passes(3)
        assert len(bench.backend.seen) == 3
        assert bench.scheduler.queue.depth(bench.shape) == 1
        bench.backend.gate.set()
        await asyncio.gather(*(job.future for job in jobs))

    async def test_a_lane_runs_one_pass_at_a_time(self, made: Made) -> None:
        """One lane: the second request waits, whatever else is idle."""
        bench = made()
        first = await bench.block()
        second = bench.submit([1, 2])
        assert bench.scheduler.queue.depth(bench.shape) == 1
        assert second.started is None
        assert first.started is not None
        bench.backend.gate.set()
        assert await rows_of(second) == [[1, 2, 2]]

    async def test_what_ran_is_counted(self, made: Made) -> None:
        """The metrics have the real tokens and the padding of a pass."""
        bench = made()
        await rows_of(bench.submit([1] * 10, [2] * 9, [3] * 8))
        assert bench.metric("tokens_total") == 27
        assert bench.metric("padding_tokens_total") == 3
        assert bench.metric("batch_size_sum") == 3
        assert bench.metric("batch_tokens_sum") == 30
        assert bench.metric("failed_passes_total") == 0

    async def test_encode_runs_beside_the_loop(self, made: Made) -> None:
        """The tokenizer's function has a thread of its own; its result and errors come back."""
        bench = made()
        assert await bench.encode(threading.get_ident) != threading.get_ident()

        def refuse() -> None:
            raise RequestError("input_too_long", "too long", "input[0]")

        with pytest.raises(RequestError, match="too long"):
            await bench.encode(refuse)


class TestLeaving:
    """Clients that do not wait for their answer."""

    async def test_a_client_that_leaves_frees_its_place_in_the_queue(self, made: Made) -> None:
        """Texts that waited are not counted any more and never reach the backend."""
        bench = made()
        blocker = await bench.block()
        leaving, staying = bench.submit([1, 1], [2, 2, 2, 2]), bench.submit([3, 3])
        assert bench.scheduler.queue.depth(bench.shape) == 3
        bench.scheduler.cancel(leaving)
        assert bench.scheduler.queue.depth(bench.shape) == 1
        assert leaving.future.cancelled()
        bench.backend.gate.set()
        assert await rows_of(staying) == [[3, 3, 2]]
        await blocker.future
        assert bench.backend.texts == [(800,) * 50, (3, 3)]

    async def test_a_client_that_leaves_during_its_pass_disturbs_nobody(self, made: Made) -> None:
        """The pass ends, the rest of the request is dropped, the lane goes on."""
        bench = made()
        bench.backend.gate.clear()
        leaving = bench.submit([1] * 40, [2] * 40, [3] * 40)
        await bench.backend.passes(1)
        bench.scheduler.cancel(leaving)
        staying = bench.submit([4, 4])
        bench.backend.gate.set()
        assert await rows_of(staying) == [[4, 4, 2]]
        assert bench.backend.texts == [(1,) * 40, (4, 4)]

    async def test_a_client_that_leaves_during_its_last_pass_disturbs_nobody(
        self, made: Made
    ) -> None:
        """Its rows come when nobody waits for them: they are dropped, the lane goes on."""
        bench = made()
        leaving = await bench.block()
        bench.scheduler.cancel(leaving)
        staying = bench.submit([4, 4])
        bench.backend.gate.set()
        assert await rows_of(staying) == [[4, 4, 2]]
        assert leaving.future.cancelled()

    async def test_a_client_that_leaves_after_its_pass_failed_is_not_run_again(
        self, made: Made
    ) -> None:
        """Its text is taken out of the half that waits for its second run."""
        bench = made()
        bench.backend.one_at_a_time = True
        blocker = await bench.block()
        failing = bench.submit([FAILS, 1])
        leaving, staying = bench.submit([5, 1]), bench.submit([6, 1])
        bench.backend.gate.set()
        await bench.backend.passes(1)  # the three together
        bench.backend.gate.set()
        await bench.backend.passes(1)  # the first half: the offender
        bench.scheduler.cancel(leaving)
        bench.backend.one_at_a_time = False
        bench.backend.gate.set()
        assert await rows_of(staying) == [[6, 1, 2]]
        assert (await error_of(failing)).code == "inference_failed"
        assert leaving.future.cancelled()
        assert bench.backend.seen[1:] == [
            [(FAILS, 1), (5, 1), (6, 1)],
            [(FAILS, 1)],
            [(6, 1)],
        ]
        await blocker.future

    async def test_leaving_twice_is_leaving_once(self, made: Made) -> None:
        """A second cancel, or one after the answer, does nothing."""
        bench = made()
        done = bench.submit([1])
        assert await rows_of(done) == [[1, 1, 1]]
        bench.scheduler.cancel(done)
        blocker = await bench.block()
        leaving = bench.submit([2])
        bench.scheduler.cancel(leaving)
        bench.scheduler.cancel(leaving)
        assert bench.scheduler.queue.depth(bench.shape) == 0
        bench.backend.gate.set()
        await blocker.future


class TestFailing:
    """A text that fails fails alone."""

    @pytest.mark.parametrize("place", [0, 5, 15])
    async def test_a_failing_text_among_sixteen_is_found_by_halves(
        self, place: int, made: Made
    ) -> None:
        """Its request fails, fifteen neighbours get their rows, in no more than nine passes."""
        bench = made()
        blocker = await bench.block()
        ids = [FAILS if i == place else i + 1 for i in range(16)]
        jobs = [bench.submit([i, 1, 1, 1]) for i in ids]
        bench.backend.gate.set()
        error = await error_of(jobs[place])
        assert (error.code, error.status) == ("inference_failed", 500)
        assert error.param == "input[0]"
        assert error.headers["x-should-retry"] == "false"
        assert "secret" not in error.message
        for i, job in zip(ids, jobs, strict=True):
            if i != FAILS:
                assert await rows_of(job) == [[i, 1, 4]]
        await blocker.future
        sizes = [len(p) for p in bench.backend.seen if (FAILS, 1, 1, 1) in p]
        assert sizes == [16, 8, 4, 2, 1]
        assert len(bench.backend.seen) - 1 <= 9
        assert bench.metric("failed_passes_total") == 5

    async def test_two_failing_texts_are_both_found(self, made: Made) -> None:
        """Each fails its own request, in whatever halves they stand."""
        bench = made(lanes=2)
        bench.backend.gate.clear()
        blockers = [bench.submit([800] * 50), bench.submit([801] * 50)]
        await bench.backend.passes(2)
        ids = [1, FAILS, 3, 4, 5, FAILS, 7, 8]
        jobs = [bench.submit([i, 1, 1, 1]) for i in ids]
        bench.backend.gate.set()
        for i, job in zip(ids, jobs, strict=True):
            if i == FAILS:
                assert (await error_of(job)).code == "inference_failed"
            else:
                assert await rows_of(job) == [[i, 1, 4]]
        await asyncio.gather(*(job.future for job in blockers))

    async def test_a_request_with_a_failing_text_is_dropped_whole(self, made: Made) -> None:
        """The error names the text, and what waits of the request is never run."""
        bench = made(tokens_per_pass=8)
        job = bench.submit([1] * 5, [FAILS] * 8, *([2, 2, 2, i] for i in range(50)))
        error = await error_of(job)
        assert (error.code, error.param) == ("inference_failed", "input[1]")
        assert bench.scheduler.queue.depth(bench.shape) == 0
        assert await rows_of(bench.submit([3])) == [[3, 3, 1]]
        assert not any(text[:3] == (2, 2, 2) for text in bench.backend.texts)

    @pytest.mark.parametrize("bad", [NAN, ZERO, INFINITE], ids=["NaN", "zeros", "infinite"])
    async def test_a_spoiled_row_fails_its_own_request_only(self, bad: int, made: Made) -> None:
        """Neighbours in the same pass get their rows; the pass is not run again."""
        bench = made()
        blocker = await bench.block()
        before, spoiled, after = (
            bench.submit([1, 1]),
            bench.submit([2, 2], [bad, 2]),
            bench.submit([3, 3]),
        )
        bench.backend.gate.set()
        assert await rows_of(before) == [[1, 1, 2]]
        assert await rows_of(after) == [[3, 3, 2]]
        error = await error_of(spoiled)
        assert (error.code, error.status) == ("non_finite_embedding", 500)
        assert error.param == "input[1]"
        assert error.headers["x-should-retry"] == "false"
        await blocker.future
        assert [len(texts) for texts in bench.backend.seen] == [1, 4]

    async def test_a_text_of_no_tokens_does_not_stop_the_others(self, made: Made) -> None:
        """It is refused or fails by itself; the queue goes on."""
        bench = made()
        with pytest.raises(RequestError):
            async with asyncio.timeout(1):
                await bench.submit([1, 1], []).future
        assert await rows_of(bench.submit([2, 2])) == [[2, 2, 2]]


class Clock:
    """Time that passes when it is told to, in any thread."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def advance(self) -> None:
        """One second more."""
        self.now += 1.0


class Texts:
    """Texts that differ: equal ones in flight are computed once."""

    def __init__(self) -> None:
        self._number = 100

    def of(self, length: int) -> list[int]:
        """Return the next one."""
        self._number += 1
        return [self._number] * length


class TestAdmission:
    """429, once the predicted wait passes the limit."""

    @pytest.mark.parametrize("lanes", [1, 2])
    async def test_refused_once_the_predicted_wait_passes_the_limit(
        self, lanes: int, made: Made
    ) -> None:
        """At 10 tokens a second and lane, 2.5 s are accepted and 3 s are not."""
        clock, texts = Clock(), Texts()
        bench = made(lanes, 16, max_wait=2.5, clock=clock, on_pass=clock.advance)
        await rows_of(bench.submit([1] * 10))  # 10 tokens in 1 s
        bench.backend.gate.clear()
        running = [bench.submit(texts.of(10)) for _ in range(lanes)]
        await bench.backend.passes(lanes)
        assert bench.scheduler.predicted_wait() == 0
        waiting = [bench.submit(texts.of(10)) for _ in range(2 * lanes)]
        assert bench.scheduler.predicted_wait() == pytest.approx(2.0)
        waiting += [bench.submit(texts.of(10)) for _ in range(lanes)]
        assert bench.scheduler.predicted_wait() == pytest.approx(3.0)
        with pytest.raises(RequestError) as error:
            bench.submit([4] * 10)
        assert (error.value.code, error.value.status) == ("queue_full", 429)
        assert int(error.value.headers["Retry-After"]) >= 1
        assert error.value.headers["retry-after-ms"] == "500"
        assert len(waiting) == bench.scheduler.queue.depth(bench.shape), "nothing of it is queued"
        bench.backend.gate.set()
        await asyncio.gather(*(job.future for job in [*running, *waiting]))
        assert await rows_of(bench.submit([4] * 10)) == [[4, 4, 10]]
        assert bench.backend.texts.count((4,) * 10) == 1

    async def test_retry_after_is_what_is_too_much(self, made: Made) -> None:
        """A queue of 100 s where 40 s are accepted: come again in 60 s."""
        clock = Clock()
        bench = made(1, 16, max_wait=40.0, clock=clock, on_pass=clock.advance)
        await rows_of(bench.submit([1] * 10))
        blocker = await bench.block(10)
        waiting = bench.submit(*([2] * 9 + [i] for i in range(100)))
        with pytest.raises(RequestError) as error:
            bench.submit(*([3] * 9 + [i] for i in range(100)))
        assert error.value.headers == {"Retry-After": "60", "retry-after-ms": "60000"}
        bench.scheduler.cancel(waiting)
        bench.backend.gate.set()
        await blocker.future

    async def test_a_query_is_not_refused_for_the_bulk_it_passes(self, made: Made) -> None:
        """Only what goes before it counts: 100 s of bulk wait, and a short text need not."""
        clock = Clock()
        bench = made(1, 16, max_wait=2.5, clock=clock, on_pass=clock.advance)
        await rows_of(bench.submit([1] * 10))
        blocker = await bench.block(10)
        bulk = bench.submit(*([2] * 9 + [i] for i in range(100)))
        assert bench.scheduler.predicted_wait() == pytest.approx(100)
        query = bench.submit([3, 4])
        bench.backend.gate.set()
        assert await rows_of(query) == [[3, 4, 2]]
        assert bench.backend.texts[2] == (3, 4)
        await asyncio.gather(blocker.future, bulk.future)

    async def test_what_passes_is_learned(self, made: Made) -> None:
        """Two texts wait behind two queries and are passed by a third: the next waits longer."""
        clock, texts = Clock(), Texts()
        bench = made(1, 16, max_wait=2.5, clock=clock, on_pass=clock.advance)
        await rows_of(bench.submit([1] * 10))  # 10 tokens in 1 s, as in every pass here

        async def refused() -> int:
            """Milliseconds past 2.5 s that three texts would wait behind three."""
            blocker = await bench.block(10)
            jobs = [blocker, bench.submit(*(texts.of(10) for _ in range(3)))]
            with pytest.raises(RequestError) as error:
                bench.submit(*(texts.of(10) for _ in range(3)))
            for count in (1, 1, 2, 1):  # the last passes the one before it
                jobs.append(bench.submit(*(texts.of(10) for _ in range(count))))
            bench.backend.gate.set()
            await asyncio.gather(*(job.future for job in jobs))
            return int(error.value.headers["retry-after-ms"])

        assert await refused() == 500
        assert await refused() == 800  # half of what might, learned by a fifth: 0.1 of the 3 s

    async def test_a_request_that_would_be_late_is_refused_at_once(self, made: Made) -> None:
        """It gives itself 1 s, and 2 s of work go before it: 429, come again in 1 s."""
        clock = Clock()
        bench = made(1, 16, clock=clock, on_pass=clock.advance)
        await rows_of(bench.submit([1] * 10))
        blocker = await bench.block(10)
        waiting = [bench.submit([i] * 10) for i in (2, 3)]
        with pytest.raises(RequestError, match="deadline") as error:
            bench.scheduler.submit(bench.encoder, [np.full(10, 4, np.int64)], most=1.0)
        assert error.value.headers == {"Retry-After": "1", "retry-after-ms": "1000"}
        bench.backend.gate.set()
        await asyncio.gather(blocker.future, *(job.future for job in waiting))

    async def test_an_idle_server_refuses_nothing_for_its_size(self, made: Made) -> None:
        """A request of 100 s is accepted, whole, where 2.5 s of waiting are the limit."""
        clock = Clock()
        bench = made(1, 16, max_wait=2.5, clock=clock, on_pass=clock.advance)
        await rows_of(bench.submit([1] * 10))
        assert len(await rows_of(bench.submit(*([2] * 9 + [i] for i in range(100))))) == 100

    async def test_a_client_that_leaves_makes_room(self, made: Made) -> None:
        """Its work counts no more in the predicted wait."""
        clock = Clock()
        bench = made(1, 16, max_wait=2.5, clock=clock, on_pass=clock.advance)
        await rows_of(bench.submit([1] * 10))
        blocker = await bench.block(10)
        leaving = bench.submit(*([2] * 9 + [i] for i in range(10)))
        as_much = [[3] * 9 + [i] for i in range(10)]
        with pytest.raises(RequestError):
            bench.submit(*as_much)
        bench.scheduler.cancel(leaving)
        assert bench.scheduler.predicted_wait() == 0
        staying = bench.submit(*as_much)
        bench.backend.gate.set()
        assert await rows_of(staying) == [[3, i, 10] for i in range(10)]
        await blocker.future


class TestOnce:
    """Equal sequences in flight are computed once."""

    async def test_equal_texts_of_a_request_run_once(self, made: Made) -> None:
        """Each gets its row all the same."""
        bench = made()
        assert await rows_of(bench.submit([1, 2], [3], [1, 2], [1, 2])) == [
            [1, 2, 2],
            [3, 3, 1],
            [1, 2, 2],
            [1, 2, 2],
        ]
        assert sorted(bench.backend.texts) == [(1, 2), (3,)]

    @pytest.mark.parametrize("runs", [False, True], ids=["while it waits", "while it runs"])
    async def test_a_text_in_flight_is_joined(self, runs: bool, made: Made) -> None:
        """Two requests for one text: one pass, two answers."""
        bench = made()
        blocker = await bench.block()
        first = blocker if runs else bench.submit([1, 2])
        text = [800] * 50 if runs else [1, 2]
        second = bench.submit(text, [5])
        bench.backend.gate.set()
        assert (await rows_of(second))[0] == (await rows_of(first))[0]
        assert bench.backend.texts.count(tuple(text)) == 1
        assert second.started is not None
        await blocker.future
        again = bench.submit(text)
        await again.future
        assert bench.backend.texts.count(tuple(text)) == 2, "a text that is done is computed again"

    async def test_a_query_brings_a_bulk_s_text_forward(self, made: Made) -> None:
        """A text that bulk waits for runs at the query's place."""
        bench = made(tokens_per_pass=4)
        bench.backend.one_at_a_time = True
        blocker = await bench.block()
        bulk = bench.submit(*([i] * 4 for i in range(1, 10)))
        query = bench.submit([7] * 4)
        bench.backend.gate.set()
        await bench.backend.passes(1)
        assert bench.backend.texts[1] == (7,) * 4
        bench.backend.one_at_a_time = False
        bench.backend.gate.set()
        assert await rows_of(query) == [[7, 7, 4]]
        assert await rows_of(bulk) == [[i, i, 4] for i in range(1, 10)]
        await blocker.future

    async def test_one_that_leaves_does_not_take_the_text_along(self, made: Made) -> None:
        """The other still gets its row; when both have left it never runs."""
        bench = made()
        blocker = await bench.block()
        leaving, staying = bench.submit([1, 2]), bench.submit([1, 2])
        gone = [bench.submit([3, 4]), bench.submit([3, 4])]
        for job in (leaving, *gone):
            bench.scheduler.cancel(job)
        bench.backend.gate.set()
        assert await rows_of(staying) == [[1, 2, 2]]
        await blocker.future
        assert (3, 4) not in bench.backend.texts
        again = bench.submit([3, 4])
        assert await rows_of(again) == [[3, 4, 2]]

    async def test_a_failing_text_fails_all_who_asked_for_it(self, made: Made) -> None:
        """Each with the place it has in its own request."""
        bench = made()
        blocker = await bench.block()
        jobs = [bench.submit([FAILS]), bench.submit([1], [FAILS])]
        bench.backend.gate.set()
        assert [(await error_of(job)).param for job in jobs] == ["input[0]", "input[1]"]
        await blocker.future


class TestStopping:
    """A pass that runs for nobody is ended."""

    async def test_a_pass_is_asked_to_stop_when_its_last_reader_leaves(self, made: Made) -> None:
        """Not before; a new request for the same text is computed again."""
        bench = made()
        blocker = await bench.block(4)
        other = bench.submit([800] * 4)
        bench.scheduler.cancel(blocker)
        assert not bench.backend.stops[0].asked
        bench.scheduler.cancel(other)
        assert bench.backend.stops[0].asked
        again = bench.submit([800] * 4)
        bench.backend.gate.set()
        assert await rows_of(again) == [[800, 800, 4]]
        assert bench.backend.texts == [(800,) * 4] * 2
        assert bench.metric("failed_passes_total") == 0


class TestCache:
    """Vectors that are kept, when that is asked for."""

    async def test_a_known_text_is_not_computed_again(self, made: Made) -> None:
        """Hits and misses are counted; a request of known texts alone is answered at once."""
        bench = made(cache=VectorCache(100_000))
        first = await rows_of(bench.submit([1, 2], [3]))
        job = bench.submit([3], [1, 2])
        assert job.future.done()
        assert job.started is not None
        assert await rows_of(job) == first[::-1]
        assert (await rows_of(bench.submit([3], [4])))[0] == first[1]
        assert sorted(bench.backend.texts) == [(1, 2), (3,), (4,)]
        assert bench.metric("cache_hits_total") == 3
        assert bench.metric("cache_misses_total") == 3


class TestLongPasses:
    """Long texts leave room for short ones."""

    @pytest.mark.parametrize("lanes", [2, 3])
    async def test_long_passes_never_take_all_lanes(self, lanes: int, made: Made) -> None:
        """One lane is kept from them, so that a short text runs at once."""
        bench = made(lanes, tokens_per_pass=8)
        length = 8 * LONG_PASS_BUDGETS + 1
        bench.backend.gate.clear()
        long = bench.submit(*[[i] * length for i in range(1, lanes + 2)])
        await bench.backend.passes(lanes - 1)
        assert len(bench.backend.seen) == lanes - 1
        short = bench.submit([9, 9])
        await bench.backend.passes(1)
        assert bench.backend.seen[-1] == [(9, 9)]
        bench.backend.gate.set()
        assert await rows_of(short) == [[9, 9, 2]]
        assert await rows_of(long) == [[i, i, length] for i in range(1, lanes + 2)]

    async def test_long_texts_use_every_core_where_only_one_runs(self, made: Made) -> None:
        """Two lanes: the kept one would idle; a query still begins at once, beside the long."""
        bench = made(2, tokens_per_pass=8)
        length = 8 * LONG_PASS_BUDGETS + 1
        await rows_of(bench.submit([1] * length, [2] * length))
        assert bench.backend.alone == [True, True]
        bench.backend.gate.clear()
        long = bench.submit([3] * length, [4] * length)
        await bench.backend.passes(3)
        query = bench.submit([9, 9])
        await bench.backend.passes(1)
        assert bench.backend.alone == [True, True, True, False]
        bench.backend.gate.set()
        await rows_of(query)
        await rows_of(long)

    async def test_long_texts_share_the_cores_of_more_lanes(self, made: Made) -> None:
        """Four lanes: three run long texts, with one core each."""
        bench = made(4, tokens_per_pass=8)
        length = 8 * LONG_PASS_BUDGETS + 1
        bench.backend.gate.clear()
        long = bench.submit(*[[i] * length for i in range(1, 5)])
        await bench.backend.passes(3)
        assert bench.backend.alone == [False] * 3
        bench.backend.gate.set()
        await rows_of(long)

    async def test_the_only_lane_runs_long_texts_too(self, made: Made) -> None:
        """With one lane there is none to keep."""
        bench = made(1, tokens_per_pass=8)
        length = 8 * LONG_PASS_BUDGETS + 1
        assert await rows_of(bench.submit([1] * length)) == [[1, 1, length]]


class TestClosing:
    """close()."""

    async def test_an_idle_scheduler_s_threads_end(self, made: Made) -> None:
        """Nothing is left running."""
        before = set(threading.enumerate())
        bench = made(lanes=2)
        await rows_of(bench.submit([1]))
        await bench.encode(lambda: None)
        started = set(threading.enumerate()) - before
        assert started
        bench.scheduler.close()
        for thread in started:
            await asyncio.to_thread(thread.join, SECONDS)
        assert not any(thread.is_alive() for thread in started)

    async def test_a_pass_that_runs_still_answers(self, made: Made) -> None:
        """What began is finished."""
        bench = made()
        blocker = await bench.block()
        bench.scheduler.close()
        bench.backend.gate.set()
        assert await rows_of(blocker) == [[800, 800, 50]]

    async def test_what_waits_ends_and_never_runs(self, made: Made) -> None:
        """Every accepted request ends in one result, error or cancellation; none hangs."""
        bench = made()
        blocker = await bench.block()
        waiting = bench.submit([1, 1])
        bench.scheduler.close()
        bench.backend.gate.set()
        await blocker.future
        done, _ = await asyncio.wait([waiting.future], timeout=1)
        assert done, "a request waits for ever"
        assert waiting.future.cancelled() or isinstance(waiting.future.exception(), RequestError)
        assert bench.backend.texts == [(800,) * 50]


class TestMemory:
    """A pass that finds no memory is run in parts, and passes stay smaller for a while."""

    async def test_neighbours_are_answered(self, made: Made) -> None:
        """Eight texts that fit in twos: all are answered, and the next come in twos at once."""
        now = 0.0
        bench = made(clock=lambda: now)
        bench.backend.memory = 16
        texts = [[100 + i] * 8 for i in range(8)]
        expected = [[100 + i, 100 + i, 8] for i in range(8)]
        assert await rows_of(bench.submit(*texts)) == expected
        assert bench.metric("failed_passes_total") > 0
        bench.backend.seen.clear()
        assert await rows_of(bench.submit(*texts)) == expected
        assert {len(texts) for texts in bench.backend.seen} == {2}
        now = SHRUNK_SECONDS + 1
        bench.backend.memory = 64
        bench.backend.seen.clear()
        assert await rows_of(bench.submit(*texts)) == expected
        assert {len(texts) for texts in bench.backend.seen} == {8}

    async def test_what_never_fits_is_503_and_fails_alone(self, made: Made) -> None:
        """One text for which there is no memory: it may be tried again later; the others go on."""
        bench = made()
        bench.backend.memory = 16
        large, small = bench.submit([5] * 20), bench.submit([6] * 8)
        error = await error_of(large)
        assert (error.status, error.code, error.param) == (503, "out_of_memory", "input[0]")
        assert int(error.headers["Retry-After"]) > 0
        assert "bad_alloc" not in error.message
        assert await rows_of(small) == [[6, 6, 8]]


async def test_a_lost_device_is_known(made: Made) -> None:
    """Its requests fail, and what liveness is decided by says so from then on."""
    bench = made()
    assert bench.scheduler.lost is None
    await rows_of(bench.submit([5]))
    embed = bench.backend.embed

    def fail(*_: object) -> Floats:
        raise DeviceLostError("CUBLAS failure 13: the function failed to launch on the GPU")

    bench.backend.embed = fail  # type: ignore[method-assign,assignment]
    error = await error_of(bench.submit([6]))
    assert (error.status, error.code) == (500, "inference_failed")
    assert bench.scheduler.lost == "CUBLAS failure 13: the function failed to launch on the GPU"
    bench.backend.embed = embed  # type: ignore[method-assign]


async def test_a_pass_that_does_not_come_back_is_known(made: Made) -> None:
    """Since when it was asked to end: what liveness is decided by."""
    bench = made()
    assert bench.scheduler.longest_stop() == 0
    job = await bench.block()
    assert bench.scheduler.longest_stop() == 0
    bench.scheduler.cancel(job)
    first = bench.scheduler.longest_stop()
    assert 0 < first <= bench.scheduler.longest_stop() < SECONDS
    bench.backend.gate.set()
    await rows_of(bench.submit([1]))  # the lane is back
    assert bench.scheduler.longest_stop() == 0


async def test_the_rate_of_the_start_counts_from_the_first_request(made: Made) -> None:
    """A measured rate admits by predicted wait before anything has run."""
    bench = made(max_wait=1.0)
    engine = replace(bench.encoder, rate=50.0)
    bench.scheduler = Scheduler({"fake": engine}, 1, 64, 1.0, bench.metrics)
    await bench.block(length=10)
    bench.submit([1] * 45)
    with pytest.raises(RequestError, match="would wait") as refused:
        for i in range(3):
            bench.submit([2 + i] * 45)
    assert refused.value.code == "queue_full"
    bench.backend.gate.set()


async def test_sequences_are_not_written_to(made: Made) -> None:
    """A client's ids are the same after their pass."""
    bench = made()
    sequences: list[Ints] = [np.array([1, 2, 3], np.int64), np.array([4, 5, 6], np.int64)]
    await bench.scheduler.submit(bench.encoder, sequences).future
    assert [ids.tolist() for ids in sequences] == [[1, 2, 3], [4, 5, 6]]
