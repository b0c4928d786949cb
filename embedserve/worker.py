"""The only bridge between asyncio and threads: Job, Worker; the Backend protocol."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

from embedserve.batching import Batch, BatchQueue, Entry, Shape, pad
from embedserve.errors import RequestError
from embedserve.metrics import Metrics
from embedserve.pooling import Floats, Ints

log = logging.getLogger(__name__)
T = TypeVar("T")

# One pass of warm-up is enough for a first guess; each later pass weighs 1/20.
_RATE_WEIGHT = 0.05


class Backend(Protocol):
    """Runs one pass in an inference thread: (b, t) ids and mask -> (b, dim) float32."""

    def embed(self, batch: Batch) -> Floats: ...


@dataclass(frozen=True, slots=True)
class Engine:
    """A backend with what scheduling and padding must know of its model."""

    name: str
    backend: Backend
    shape: Shape
    dimension: int
    pad_token_id: int
    padding_side: str


@dataclass(slots=True, eq=False)
class Job:
    """One request in the engine. Owned by the event loop.

    `future` resolves to rows (n, dim) float32 when the last pass is done.
    """

    engine: Engine
    rows: Floats
    future: asyncio.Future[Floats]
    submitted: float
    entries: list[Entry] = field(default_factory=list)
    remaining: int = 0
    started: float | None = None  # when its first pass began
    finished: float = 0.0


@dataclass(frozen=True, slots=True)
class _Pass:
    """What an inference thread gives back."""

    rows: Floats
    padded_tokens: int
    seconds: float


class Worker:
    """Passes over lanes (inference threads), a tokenizer thread and one for big answers.

    Owned by the event loop; not thread-safe. Threads receive arrays and return arrays.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        lanes: int,
        tokens_per_pass: int,
        max_wait: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.queue = BatchQueue(tokens_per_pass)
        self._engines = {engine.shape: engine for engine in engines.values()}
        self._lanes = lanes
        self._max_wait = max_wait
        self._metrics = {e.shape: metrics.of(e.name) for e in engines.values()}
        self._clock = clock
        self._rate = dict.fromkeys(self._engines, 0.0)  # cost units per second and lane
        self._busy = 0
        self._busy_long = 0
        self._closed = False
        self._again: deque[list[Entry]] = deque()  # halves of a pass that failed
        self._inference = ThreadPoolExecutor(lanes, "inference")
        self._tokenizer = ThreadPoolExecutor(1, "tokenizer")
        self._renderer = ThreadPoolExecutor(1, "renderer")

    async def encode(self, function: Callable[[], T]) -> T:
        """Run a tokenizer's function off the loop."""
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._tokenizer, function)

    async def render(self, function: Callable[[], T]) -> T:
        """Run the rendering of a big answer off the loop; it does not wait for tokenizing."""
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._renderer, function)

    def submit(self, engine: Engine, sequences: list[Ints]) -> Job:
        """Queue one request, whole, or refuse it with 429 when the wait would be too long.

        Each sequence (t_i,) int64 has one token or more.
        """
        self._check_open()
        if any(len(ids) == 0 for ids in sequences):
            raise RequestError("empty_input", "a text without tokens cannot be embedded", "input")
        loop = asyncio.get_running_loop()
        job = Job(
            engine=engine,
            rows=np.empty((len(sequences), engine.dimension), np.float32),
            future=loop.create_future(),
            submitted=self._clock(),
            remaining=len(sequences),
        )
        job.entries = [Entry(ids, job, row, engine.shape) for row, ids in enumerate(sequences)]
        wait = self.predicted_wait()
        if wait > self._max_wait:
            raise RequestError(
                "queue_full",
                f"the queue is {wait:.1f} s long, at most {self._max_wait:g} s are accepted; "
                "try again later",
                headers={
                    "Retry-After": str(max(1, round(wait - self._max_wait))),
                    "retry-after-ms": str(max(1, round((wait - self._max_wait) * 1000))),
                },
            )
        self.queue.put(job.entries)
        self._pump()
        return job

    def cancel(self, job: Job) -> None:
        """Take a request out of the queue; a pass that runs already is left to end."""
        self.queue.discard(job.entries)
        job.future.cancel()

    def fail(self, job: Job, error: Exception) -> None:
        """End a request with an error; what still waits of it is never computed."""
        if not job.future.done():
            self.queue.discard(job.entries)
            job.future.set_exception(error)

    def predicted_wait(self) -> float:
        """Seconds until what waits now is done; 0 while a model's rate is not known."""
        waits = (self.queue.cost(shape) / rate for shape, rate in self._rate.items() if rate > 0)
        return sum(waits) / self._lanes

    def close(self) -> None:
        """End what waits with 503 and let the threads end; what runs is answered."""
        self._closed = True
        for entry in (*self.queue.clear(), *(e for half in self._again for e in half)):
            self.fail(_job(entry), _draining())
        self._again.clear()
        self._inference.shutdown(wait=False)  # at most one pass a lane
        self._renderer.shutdown(wait=False)
        self._tokenizer.shutdown(wait=False, cancel_futures=True)

    def _check_open(self) -> None:
        if self._closed:
            raise _draining()

    def _pump(self) -> None:
        """Start passes while a lane is free; one lane is kept from long passes."""
        while self._busy < self._lanes and not self._closed:
            allow_long = self._busy_long < max(1, self._lanes - 1)
            free = self._lanes - self._busy
            entries = self._next_half() or self.queue.take(allow_long, free)
            if not entries:
                return
            self._start(entries)

    def _next_half(self) -> list[Entry]:
        """A half of a failed pass, less those who left meanwhile."""
        while self._again:
            entries = [e for e in self._again.popleft() if not _job(e).future.done()]
            if entries:
                return entries
        return []

    def _start(self, entries: list[Entry]) -> None:
        now = self._clock()
        engine = self._engines[entries[0].shape]
        metrics = self._metrics[engine.shape]
        for entry in entries:
            job = _job(entry)
            if job.started is None:
                job.started = now
                metrics.queue_wait.observe(now - job.submitted)
        is_long = self.queue.is_long(entries[0])
        self._busy += 1
        self._busy_long += is_long
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._inference, self._run, engine, [e.ids for e in entries])
        running.add_done_callback(lambda done: self._done(engine, entries, is_long, done.result()))

    def _run(self, engine: Engine, sequences: list[Ints]) -> _Pass | Exception:
        """In an inference thread: arrays in, arrays out."""
        start = self._clock()
        try:
            batch = pad(sequences, engine.pad_token_id, engine.padding_side)
            rows = engine.backend.embed(batch)
            if rows.shape != (len(sequences), engine.dimension):
                raise ValueError(f"the pass gave rows of shape {rows.shape}")
            return _Pass(rows, batch.input_ids.size, self._clock() - start)
        except Exception as error:  # whatever a pass raises must reach its requests
            return error

    def _done(
        self, engine: Engine, entries: list[Entry], is_long: bool, done: _Pass | Exception
    ) -> None:
        self._busy -= 1
        self._busy_long -= is_long
        if isinstance(done, Exception):
            self._failed(engine, entries, done)
        else:
            self._measure(engine, entries, done)
            self._deliver(entries, done.rows)
        self._pump()

    def _failed(self, engine: Engine, entries: list[Entry], error: Exception) -> None:
        """Find the offender by halves: it fails alone, its neighbours run again."""
        self._metrics[engine.shape].failed_passes.inc()
        if len(entries) > 1 and not self._closed:
            middle = len(entries) // 2
            self._again.extend([entries[:middle], entries[middle:]])
            return
        log.error("model %s: a pass of one text failed: %r", engine.name, error)
        for entry in entries:
            self.fail(_job(entry), _inference_failed(entry.row))

    def _deliver(self, entries: list[Entry], rows: Floats) -> None:
        # A NaN or an infinity anywhere in a row, or a row of zeros, shows in its square sum.
        norms = np.einsum("bd,bd->b", rows, rows)
        for entry, row, norm in zip(entries, rows, norms, strict=True):
            job = _job(entry)
            if not (np.isfinite(norm) and norm > 0):
                self.fail(job, _non_finite(entry.row))
                continue
            job.rows[entry.row] = row
            job.remaining -= 1
            if job.remaining == 0 and not job.future.done():
                job.finished = self._clock()
                job.future.set_result(job.rows)

    def _measure(self, engine: Engine, entries: list[Entry], done: _Pass) -> None:
        metrics = self._metrics[engine.shape]
        tokens = sum(len(entry.ids) for entry in entries)
        metrics.inference_duration.observe(done.seconds)
        metrics.batch_size.observe(len(entries))
        metrics.batch_tokens.observe(done.padded_tokens)
        metrics.padding_ratio.observe(1 - tokens / done.padded_tokens)
        metrics.tokens.inc(tokens)
        metrics.padding_tokens.inc(done.padded_tokens - tokens)
        rate = sum(entry.cost for entry in entries) / max(done.seconds, 1e-9)
        known = self._rate[engine.shape]
        self._rate[engine.shape] = known + _RATE_WEIGHT * (rate - known) if known else rate


def _job(entry: Entry) -> Job:
    assert isinstance(entry.owner, Job)
    return entry.owner


def _draining() -> RequestError:
    return RequestError("draining", "the server is shutting down", headers={"Retry-After": "1"})


def _inference_failed(row: int) -> RequestError:
    return RequestError(
        "inference_failed",
        f"the model failed on input[{row}]; the other requests are not affected",
        f"input[{row}]",
        {"x-should-retry": "false"},
    )


def _non_finite(row: int) -> RequestError:
    return RequestError(
        "non_finite_embedding",
        f"the vector of input[{row}] is not finite or zero",
        f"input[{row}]",
        {"x-should-retry": "false"},
    )
