"""One request's path through the engine: tokenize, queue, wait for the rows, cut."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embedserve.arrays import finishing
from embedserve.arrays.types import Floats
from embedserve.engine.cancellation import Cancellation
from embedserve.engine.jobs import Job
from embedserve.engine.scheduler import Scheduler
from embedserve.errors import RequestError
from embedserve.model.model import Model
from embedserve.model.request import EmbeddingsRequest, components, prompt
from embedserve.model.steps import Step, Steps, Task
from embedserve.model.tokenizer import (
    STEP_CHARACTERS,
    Encoded,
    Tokens,
    check_tokens,
    cost,
    slices,
)

# At most this many characters are tokenized on the loop: 0.1 ms of short words, as much as going
# to a thread and back.
FEW_CHARACTERS = 512

# Tokens of some texts, and the first one's index in the request -> bytes.
Render = Callable[[Sequence[Tokens], int], bytes]


@dataclass(frozen=True, slots=True)
class Embedded:
    """A request's vectors (n, dim) float32, and what it took (seconds).

    `began` and `submitted`: when it was first tokenized and queued, by time.perf_counter.
    """

    rows: Floats
    tokens: int
    truncated: list[int]
    tokenize: float
    queue: float
    inference: float
    began: float
    submitted: float


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way through the engine.

    When nobody waits any more, as `cancellation` says, the rest of it is never computed. `hold` is
    called with the bytes that tokenizing keeps.
    """

    model: Model
    request: EmbeddingsRequest
    scheduler: Scheduler
    max_tokens: int
    cancellation: Cancellation
    hold: Callable[[int], None]

    @property
    def prompt(self) -> str:
        """The text put before each of its inputs."""
        return prompt(self.model.manifest, self.request.prompt_name, self.request.input_type)


async def embed(call: Call) -> Embedded:
    """Tokenize, queue, wait for the rows, cut them as asked; RequestError when refused."""
    start = time.perf_counter()
    model, scheduler = call.model, call.scheduler
    dimension = components(model.manifest, call.request.dimensions)
    encoded = await _encode(call, start)
    tokenized = time.perf_counter()
    job = scheduler.submit(model.encoder, encoded.sequences, call.cancellation.left())
    rows = await _rows(job, scheduler, call.cancellation)
    if dimension != model.manifest.dimension:
        rows = finishing.truncate(rows, dimension)
    assert job.started is not None
    started = job.started
    return Embedded(
        rows=rows,
        tokens=encoded.tokens,
        truncated=encoded.truncated,
        tokenize=tokenized - start,
        queue=started - job.submitted,
        inference=job.finished - started,
        began=start,
        submitted=job.submitted,
    )


async def show_tokens(call: Call, render: Render) -> list[bytes]:
    """What the model sees of each text, as `render` makes bytes of it; as `embed` for the rest."""
    texts = call.request.texts
    if texts is None:
        raise RequestError("invalid_type", "input holds token ids; strings are accepted", "input")
    before = call.prompt
    task = Task(call.model.name, cost(texts, before), _token_steps(call, texts, before, render))
    left = call.cancellation.left()
    return await call.cancellation.wait(
        call.scheduler.encode(task, left, call.hold, then_runs=False)
    )


def _token_steps(call: Call, texts: list[str], before: str, render: Render) -> Steps[list[bytes]]:
    """Tokenize and render part by part: a token as JSON is a tenth of its objects."""
    parts = []
    tokens = 0
    for first, part in slices(texts, before, STEP_CHARACTERS):
        shown = call.model.tokenizer.tokens(part, before, call.request.truncate, first)
        tokens += sum(len(text.ids) for text in shown)
        check_tokens(tokens, call.max_tokens)
        parts.append(render(shown, first))
        yield Step(cost(part, before), len(parts[-1]))
    return parts


async def _encode(call: Call, start: float) -> Encoded:
    """Tokenize: a few characters here, more in slices off the loop. `start`: the time."""
    model, request, scheduler = call.model, call.request, call.scheduler
    if request.texts is None:
        _check_token_ids_accepted(model)
        ids = request.token_ids or []
        task = Task(model.name, cost(ids, ""), model.tokenizer.checking(ids, call.max_tokens))
    else:
        texts, before = request.texts, call.prompt
        units = cost(texts, before)
        if units <= FEW_CHARACTERS and scheduler.on_loop.is_left(start):
            encoded = model.tokenizer.encode(texts, before, request.truncate)
            scheduler.on_loop.spend(time.perf_counter() - start)
            check_tokens(encoded.tokens, call.max_tokens)
            return encoded
        steps = model.tokenizer.encoding(texts, before, request.truncate, call.max_tokens)
        task = Task(model.name, units, steps)
    left = call.cancellation.left()
    return await call.cancellation.wait(scheduler.encode(task, left, call.hold))


def _check_token_ids_accepted(model: Model) -> None:
    if not model.spec.accept_token_ids:
        raise RequestError(
            "token_ids_not_accepted",
            "input holds token ids, which may be another tokenizer's; send strings "
            "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
            "input",
        )


async def _rows(job: Job, scheduler: Scheduler, cancellation: Cancellation) -> Floats:
    """Wait for the rows, for as long as somebody waits for the answer."""
    try:
        cancellation.watch(functools.partial(scheduler.fail, job))
        return await job.future
    finally:
        if not job.future.done():
            scheduler.cancel(job)
