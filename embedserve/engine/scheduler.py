"""The only bridge between asyncio and threads: Scheduler."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from embedserve.arrays.types import Floats, Ints
from embedserve.engine.admission import Admission, Ahead
from embedserve.engine.allowance import Allowance
from embedserve.engine.batch_queue import BatchQueue, Entry
from embedserve.engine.cache import Key, VectorCache
from embedserve.engine.cancellation import draining
from embedserve.engine.jobs import InFlight, Job, is_wanted
from embedserve.engine.lanes import Lanes
from embedserve.engine.offload import Offload
from embedserve.errors import DeviceLostError, RequestError
from embedserve.metrics import Metrics
from embedserve.model.encoder import Encoder
from embedserve.model.steps import Task
from embedserve.model.stop import Stop

log = logging.getLogger(__name__)
# Reuse a predicted wait for this long.
DOOR_SECONDS = 0.005
# Passes stay small for this long after one ran out of memory.
SHRUNK_SECONDS = 60.0
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Pass:
    """One forward pass in a lane."""

    encoder: Encoder
    entries: list[Entry]
    is_long: bool
    alone: bool
    began: float
    stop: Stop = field(default_factory=Stop)


@dataclass(frozen=True, slots=True)
class _Done:
    """What an inference thread gives back."""

    rows: Floats
    padded_tokens: int
    seconds: float


class Scheduler:
    """Passes over lanes (inference threads), and work offloaded from the event loop.

    Owned by the event loop; not thread-safe. Threads receive arrays and return arrays.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        lanes: int,
        tokens_per_pass: int,
        max_wait: float,
        metrics: Metrics,
        cache: VectorCache | None = None,
        tokenizers: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.queue = BatchQueue(tokens_per_pass)
        self.on_loop = Allowance()  # for tokenizing a few characters without a thread
        self._encoders = {encoder.shape: encoder for encoder in encoders.values()}
        self._count = lanes
        self._metrics = {e.shape: metrics.of(e.name) for e in encoders.values()}
        self._clock = clock
        self._admission = Admission({e.shape: e.rate for e in encoders.values()}, lanes, max_wait)
        self._in_flight = InFlight()
        self._cache = cache
        self._running: set[_Pass] = set()
        self._closed = False
        self.lost: str | None = None  # why a device computes no more
        self._shrunk_until: float | None = None
        self._door = (0.0, 0.0)  # until when, and the wait of the smallest request
        self._again: deque[list[Entry]] = deque()  # halves of a pass that failed
        self._lanes = Lanes(lanes, self._run, self._done)
        self.offload = Offload(tokenizers)

    def encode(
        self,
        task: Task[T],
        most: float,
        hold: Callable[[int], None],
        then_runs: bool = True,
    ) -> asyncio.Future[T]:
        """Tokenize off the loop, when the request's turn comes.

        If the future is cancelled, the work stops after its step.

        429 if it would wait too long for other tokenizing and, if it `then_runs`, for a pass.
        `most`: its own limit in seconds. `hold` is called with the bytes kept.
        """
        self._check_open()
        wait = self.offload.tokenizer_wait_before(task.cost)
        if wait:
            if then_runs:
                wait += self._admission.wait(self.queue.cost_before(1.0))
            self._admission.check(wait, most)
        return self.offload.tokenize(task, hold)

    def check_door(self) -> None:
        """429 when even the smallest request would be refused: before its body is looked at."""
        if self._cache is not None:  # it may have the answer
            return
        now = self._clock()
        until, wait = self._door
        if now >= until:
            wait = self.predicted_wait()
            if not self._admission.accepts(wait):
                wait = self._admission.wait(self.queue.cost_before(1.0))
            self._door = now + DOOR_SECONDS, wait
        if not self._admission.accepts(wait):
            self._admission.check(wait)

    def submit(self, encoder: Encoder, sequences: list[Ints], most: float = float("inf")) -> Job:
        """Queue one request, whole, or refuse it with 429 when it would wait too long.

        Each sequence (t_i,) int64 has one token or more, or none where the model is a bag.
        `most`: the seconds it gives itself.
        """
        self._check_open()
        if not encoder.is_bag and any(len(ids) == 0 for ids in sequences):
            raise RequestError("empty_input", "a text without tokens cannot be embedded", "input")
        now = self._clock()
        rows = np.empty((len(sequences), encoder.dimension), np.float32)
        job = Job(rows, asyncio.get_running_loop().create_future(), now, len(sequences))
        keyed = [(i, (encoder.fingerprint, ids.tobytes()), ids) for i, ids in enumerate(sequences)]
        left = self._fill_from_cache(encoder, job, keyed) if self._cache is not None else keyed
        new = {key: len(ids) for _, key, ids in left if key not in self._in_flight}
        cost = sum(map(encoder.shape.cost, new.values()))
        if cost:
            before = self.queue.cost_before(cost)
            job.ahead = Ahead(self.queue.done, sum(before.values()), cost)
            self._admission.check(self._admission.wait_behind(job.ahead, before), most)
        self._in_flight.join(job, encoder.shape, left)
        waiting = [entry for entry in job.entries if entry.waiting or entry.key in new]
        if len(waiting) < len(job.entries):  # some of it runs already, for others
            job.started = now
        self.queue.put(waiting)
        self._pump()
        return job

    def cancel(self, job: Job) -> None:
        """Take a request out of the engine: what only it waits for is never computed."""
        job.future.cancel()
        self._forget_unwanted(job.entries)

    def fail(self, job: Job, error: Exception) -> None:
        """End a request with an error; what still waits of it is never computed."""
        if not job.future.done():
            job.fail(error)
            self._forget_unwanted(job.entries)

    def predicted_wait(self) -> float:
        """Seconds until what waits now is tokenized, and the passes are run that wait now.

        A model counts once its rate is known.
        """
        passes = self._admission.wait({shape: self.queue.cost(shape) for shape in self._encoders})
        return self.offload.tokenizer_wait() + passes

    def longest_stop(self) -> float:
        """Seconds since the first pass that still runs was asked to end; 0 when there is none."""
        asked = [work.stop.asked for work in self._running if work.stop.asked is not None]
        return time.monotonic() - min(asked) if asked else 0.0

    def close(self, grace: float = 0.0) -> None:
        """End what waits with 503 and let the threads end; what runs is answered.

        Waits for the lanes at most `grace` seconds: what runs for nobody ends within milliseconds.
        """
        self._closed = True
        for entry in (*self.queue.clear(), *(e for half in self._again for e in half)):
            self._fail_readers(entry, lambda _: draining())
        self._again.clear()
        self._lanes.close(grace)
        self.offload.close()

    def _check_open(self) -> None:
        if self._closed:
            raise draining()

    def _fill_from_cache(
        self, encoder: Encoder, job: Job, keyed: list[tuple[int, Key, Ints]]
    ) -> list[tuple[int, Key, Ints]]:
        """Put rows of the cache in their places; return what must be computed."""
        assert self._cache is not None
        left = []
        for row, key, ids in keyed:
            known = self._cache.get(key)
            if known is None:
                left.append((row, key, ids))
            else:
                job.fill(row, known, job.submitted)
        if len(left) < len(keyed):
            job.started = job.submitted
        self._metrics[encoder.shape].cache_hits.inc(len(keyed) - len(left))
        self._metrics[encoder.shape].cache_misses.inc(len(left))
        return left

    def _forget_unwanted(self, entries: Iterable[Entry]) -> None:
        """Drop what nobody waits for from the queue, and end passes that run for nobody."""
        unwanted = [entry for entry in entries if not is_wanted(entry)]
        for entry in unwanted:
            if entry.waiting:
                self._in_flight.forget(entry)
        self.queue.discard(unwanted)
        for work in self._running if unwanted else ():
            if not any(map(is_wanted, work.entries)):
                for entry in work.entries:  # the next request for it computes it again
                    self._in_flight.forget(entry)
                work.stop.ask()

    def _pump(self) -> None:
        """Start passes while a lane is free; one lane is kept from long passes."""
        if self._shrunk_until is not None and self._clock() > self._shrunk_until:
            self._shrunk_until = None
            self.queue.restore()
        while len(self._running) < self._count and not self._closed:
            free = self._count - len(self._running)
            entries = self._next_half() or self.queue.take(self._allows_long(), free)
            if not entries:
                return
            self._start(entries)

    def _allows_long(self, more: bool = False) -> bool:
        """Whether a lane may begin a long pass, after `more` has begun with one."""
        return sum(work.is_long for work in self._running) + more < max(1, self._count - 1)

    def _next_half(self) -> list[Entry]:
        """A half of a failed pass, less what nobody waits for any more."""
        while self._again:
            half = self._again.popleft()
            for entry in half:
                if not is_wanted(entry):
                    self._in_flight.forget(entry)
            if entries := [entry for entry in half if is_wanted(entry)]:
                return entries
        return []

    def _start(self, entries: list[Entry]) -> None:
        now = self._clock()
        encoder = self._encoders[entries[0].shape]
        for entry in entries:
            for job, _ in entry.readers:
                job.reached = self.queue.done
                if job.started is None:
                    job.started = now
                    self._metrics[encoder.shape].queue_wait.observe(now - job.submitted)
        is_long = self.queue.is_long(entries[0])
        # A lone text uses every core, also where the rest must wait because it is long: of two
        # lanes the one that is kept for short passes would idle. Several are shared out.
        is_lone = len(entries) == 1 and not self._running
        alone = is_lone and not self.queue.has_next(self._allows_long(is_long))
        work = _Pass(encoder, entries, is_long, alone, now)
        self._running.add(work)
        self._lanes.start(work)

    def _run(self, work: _Pass) -> _Done | Exception:
        """In an inference thread: arrays in, arrays out."""
        start = self._clock()
        try:
            sequences = [entry.ids for entry in work.entries]
            rows = work.encoder.run(sequences, work.alone, work.stop)
            padded = len(sequences) * max(1, *map(len, sequences))
            return _Done(rows, padded, self._clock() - start)
        except Exception as error:  # whatever a pass raises must reach its requests
            return error

    def _done(self, work: _Pass, done: _Done | Exception) -> None:
        self._running.discard(work)
        if isinstance(done, _Done):
            # The lane first: it computes while the loop answers.
            self._pump()
            self._measure(work, done)
            self._deliver(work.entries, done.rows)
            return
        if work.stop.asked is None:
            if isinstance(done, MemoryError):
                longest = max(len(entry.ids) for entry in work.entries)
                self.queue.shrink(len(work.entries) * longest // 2)
                self._shrunk_until = self._clock() + SHRUNK_SECONDS
            self._failed(work, done)
        self._pump()

    def _failed(self, work: _Pass, error: Exception) -> None:
        """Find the offender by halves: it fails alone, its neighbours run again."""
        self._metrics[work.encoder.shape].failed_passes.inc()
        entries = work.entries
        if len(entries) > 1 and not self._closed:
            middle = len(entries) // 2
            self._again.extend([entries[:middle], entries[middle:]])
            return
        log.error("model %s: a pass of one text failed: %r", work.encoder.name, error)
        if isinstance(error, DeviceLostError):
            self.lost = str(error)
        for entry in entries:
            self._fail_readers(
                entry, _out_of_memory if isinstance(error, MemoryError) else _inference_failed
            )

    def _fail_readers(self, entry: Entry, error: Callable[[int], RequestError]) -> None:
        self._in_flight.forget(entry)
        for job, row in entry.readers:
            self.fail(job, error(row))

    def _deliver(self, entries: list[Entry], rows: Floats) -> None:
        usable = self._encoders[entries[0].shape].usable(rows)
        now = self._clock()
        for entry, row, is_usable in zip(entries, rows, usable, strict=True):
            if not is_usable:
                self._fail_readers(entry, _non_finite)
                continue
            self._in_flight.forget(entry)
            if self._cache is not None:
                self._cache.put(entry.key, row)
            for job, place in entry.readers:
                job.fill(place, row, now)
                if job.remaining == 0 and job.ahead is not None:
                    self._admission.learn(job.ahead, job.reached)

    def _measure(self, work: _Pass, done: _Done) -> None:
        metrics = self._metrics[work.encoder.shape]
        tokens = sum(len(entry.ids) for entry in work.entries)
        metrics.inference_duration.observe(done.seconds)
        metrics.batch_size.observe(len(work.entries))
        metrics.batch_tokens.observe(done.padded_tokens)
        metrics.padding_ratio.observe(1 - tokens / done.padded_tokens)
        metrics.tokens.inc(tokens)
        metrics.padding_tokens.inc(done.padded_tokens - tokens)
        cost = sum(entry.cost for entry in work.entries)
        # Includes the hand-over: the prediction is about when lanes are done. A long text on every
        # core takes the time of all lanes; a short one hardly gains from more than its own.
        seconds = self._clock() - work.began
        lanes = self._count if work.alone and work.is_long else 1
        self._admission.measure(work.encoder.shape, cost, seconds * lanes)


def _inference_failed(row: int) -> RequestError:
    return RequestError(
        "inference_failed",
        f"the model failed on input[{row}]; the other requests are not affected",
        f"input[{row}]",
        {"x-should-retry": "false"},
    )


def _out_of_memory(row: int) -> RequestError:
    message = f"there is not enough memory for input[{row}] now; try again later"
    return RequestError("out_of_memory", message, f"input[{row}]", {"Retry-After": "5"})


def _non_finite(row: int) -> RequestError:
    return RequestError(
        "non_finite_embedding",
        f"the vector of input[{row}] is zero or not finite",
        f"input[{row}]",
        {"x-should-retry": "false"},
    )
