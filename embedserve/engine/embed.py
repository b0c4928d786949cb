"""The way of one request through the engine: tokenize, queue, wait for the rows, cut."""

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

# So few are tokenized on the loop: 0.1 ms of short words, as much as going to a thread and back.
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


async def embed(
    model: Model,
    request: EmbeddingsRequest,
    scheduler: Scheduler,
    max_tokens: int,
    cancellation: Cancellation,
    hold: Callable[[int], None],
) -> Embedded:
    """Tokenize, queue, wait for the rows, cut them as asked; RequestError when refused.

    When nobody waits any more, as `cancellation` says, what is left of it is never computed.
    `hold` is told of the bytes that tokenizing keeps.
    """
    start = time.perf_counter()
    dimension = components(model.manifest, request.dimensions)
    encoded = await _encode(model, request, scheduler, max_tokens, cancellation, hold, start)
    tokenized = time.perf_counter()
    job = scheduler.submit(model.encoder, encoded.sequences, cancellation.left())
    rows = await _rows(job, scheduler, cancellation)
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


async def show_tokens(
    model: Model,
    request: EmbeddingsRequest,
    scheduler: Scheduler,
    max_tokens: int,
    cancellation: Cancellation,
    hold: Callable[[int], None],
    render: Render,
) -> list[bytes]:
    """What the model sees of each text, as `render` makes bytes of it; as `embed` for the rest."""
    if request.texts is None:
        raise RequestError("invalid_type", "input holds token ids; strings are accepted", "input")
    before = _prompt(model, request)
    steps = _token_steps(model, request, before, max_tokens, render)
    task = Task(model.name, cost(request.texts, before), steps)
    return await cancellation.wait(
        scheduler.encode(task, cancellation.left(), hold, then_runs=False)
    )


def _token_steps(
    model: Model, request: EmbeddingsRequest, before: str, max_tokens: int, render: Render
) -> Steps[list[bytes]]:
    """Tokenize and render part by part: a token as JSON is a tenth of its objects."""
    texts = request.texts or []
    parts = []
    tokens = 0
    for first, part in slices(texts, before, STEP_CHARACTERS):
        shown = model.tokenizer.tokens(part, before, request.truncate, first)
        tokens += sum(len(text.ids) for text in shown)
        check_tokens(tokens, max_tokens)
        parts.append(render(shown, first))
        yield Step(cost(part, before), len(parts[-1]))
    return parts


async def _encode(
    model: Model,
    request: EmbeddingsRequest,
    scheduler: Scheduler,
    max_tokens: int,
    cancellation: Cancellation,
    hold: Callable[[int], None],
    start: float,
) -> Encoded:
    """Tokenize, a few characters here and more in the scheduler's slices. `start`: the time."""
    if request.texts is None:
        _check_token_ids_accepted(model)
        ids = request.token_ids or []
        task = Task(model.name, cost(ids, ""), model.tokenizer.checking(ids, max_tokens))
    else:
        texts, before = request.texts, _prompt(model, request)
        units = cost(texts, before)
        if units <= FEW_CHARACTERS and scheduler.on_loop.is_left(start):
            encoded = model.tokenizer.encode(texts, before, request.truncate)
            scheduler.on_loop.spend(time.perf_counter() - start)
            check_tokens(encoded.tokens, max_tokens)
            return encoded
        steps = model.tokenizer.encoding(texts, before, request.truncate, max_tokens)
        task = Task(model.name, units, steps)
    return await cancellation.wait(scheduler.encode(task, cancellation.left(), hold))


def _prompt(model: Model, request: EmbeddingsRequest) -> str:
    return prompt(model.manifest, request.prompt_name, request.input_type)


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
