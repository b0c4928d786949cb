"""One served model: encode -> embed -> finish."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from embedserve import finishing
from embedserve.artifact import Manifest
from embedserve.backend import OnnxBackend
from embedserve.batching import Shape
from embedserve.config import ModelSpec
from embedserve.encoder import Encoder
from embedserve.errors import RequestError
from embedserve.flight import Job
from embedserve.pooling import Floats
from embedserve.presence import Presence
from embedserve.schemas import EmbeddingsRequest, render_tokens
from embedserve.slicer import Step, Steps, Task
from embedserve.tokenization import (
    STEP_CHARACTERS,
    Encoded,
    Tokenizer,
    check_tokens,
    cost,
    slices,
)
from embedserve.worker import Worker

# sentence-transformers' encode_query and encode_document look for these prompts, in this order.
INPUT_TYPES: Mapping[str, tuple[str, ...]] = {
    "query": ("query", "search_query"),
    "document": ("document", "passage", "corpus", "search_document"),
}


# So few are tokenized on the loop: 0.1 ms, as much as going to a thread and back.
FEW_CHARACTERS = 512


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


class Model:
    """One served model: facts, tokenizer and engine. Owned by the event loop."""

    def __init__(
        self, spec: ModelSpec, manifest: Manifest, tokenizer: Tokenizer, backend: OnnxBackend
    ) -> None:
        self.spec = spec
        self.name = spec.name
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.provider = backend.provider
        self.engine = Encoder(
            name=spec.name,
            fingerprint=manifest.fingerprint,
            backend=backend,
            # Attention's share of a transformer layer's work is t / (6 h): 2 * t * h products of
            # scores and values per token against 12 * h * h of the projections.
            shape=Shape(
                spec.name,
                math.inf if manifest.is_bag else 6.0 * manifest.hidden_size,
                manifest.masked_up_to,
            ),
            dimension=manifest.dimension,
            pad_token_id=manifest.pad_token_id,
            padding_side=manifest.padding_side,
            is_bag=manifest.is_bag,
        )

    async def embed(
        self,
        request: EmbeddingsRequest,
        worker: Worker,
        max_tokens: int,
        presence: Presence,
        hold: Callable[[int], None],
    ) -> Embedded:
        """Tokenize, queue, wait for the rows, cut to `dimensions`; RequestError when refused.

        When nobody waits any more, as `presence` says, what is left of it is never computed.
        `hold` is told of the bytes that tokenizing keeps.
        """
        start = time.perf_counter()
        self.check_dimensions(request.dimensions)
        encoded = await self._encode(request, worker, max_tokens, presence, hold, start)
        tokenized = time.perf_counter()
        job = worker.submit(self.engine, encoded.sequences, presence.left())
        rows = await _rows(job, worker, presence)
        if request.dimensions not in (None, self.manifest.dimension):
            rows = finishing.truncate(rows, request.dimensions)
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
        self,
        request: EmbeddingsRequest,
        worker: Worker,
        max_tokens: int,
        presence: Presence,
        hold: Callable[[int], None],
    ) -> list[bytes]:
        """What the model sees of each text, rendered, in parts; as `embed` for the rest."""
        texts = request.texts
        if texts is None:
            raise RequestError(
                "invalid_type", "input holds token ids; strings are accepted", "input"
            )
        prompt = self.prompt(request)
        steps = self._token_steps(texts, prompt, request, max_tokens)
        task = Task(self.name, cost(texts, prompt), steps)
        return await presence.wait(worker.encode(task, presence.left(), hold, then_runs=False))

    def _token_steps(
        self, texts: list[str], prompt: str, request: EmbeddingsRequest, max_tokens: int
    ) -> Steps[list[bytes]]:
        """Tokenize and render part by part: a token as JSON is a tenth of its objects."""
        parts = []
        tokens = 0
        for first, part in slices(texts, prompt, STEP_CHARACTERS):
            shown = self.tokenizer.tokens(part, prompt, request.truncate, first)
            tokens += sum(len(text.ids) for text in shown)
            check_tokens(tokens, max_tokens)
            parts.append(render_tokens(shown, first))
            yield Step(cost(part, prompt), len(parts[-1]))
        return parts

    def prompt(self, request: EmbeddingsRequest) -> str:
        """Return the text put before each input: none unless asked for or the model's default."""
        prompts = self.manifest.prompts
        if request.input_type is not None:
            declared = [prompts[n] for n in INPUT_TYPES[request.input_type] if n in prompts]
            if not declared:
                raise self._no_prompt("input_type", request.input_type)
            # Files saved by sentence-transformers 5 declare an empty "document" beside "passage".
            return next(filter(None, declared), "")
        wanted = request.prompt_name or self.manifest.default_prompt_name
        if wanted is None:
            return ""
        if wanted not in prompts:
            raise self._no_prompt("prompt_name", wanted)
        return prompts[wanted]

    async def _encode(
        self,
        request: EmbeddingsRequest,
        worker: Worker,
        max_tokens: int,
        presence: Presence,
        hold: Callable[[int], None],
        start: float,
    ) -> Encoded:
        """Tokenize, a few characters here and more in the worker's slices. `start`: the time."""
        if request.texts is None:
            self._check_token_ids_accepted()
            ids = request.token_ids or []
            task = Task(self.name, cost(ids, ""), self.tokenizer.checking(ids, max_tokens))
        else:
            texts, prompt = request.texts, self.prompt(request)
            units = cost(texts, prompt)
            if units <= FEW_CHARACTERS and worker.on_loop.is_left(start):
                encoded = self.tokenizer.encode(texts, prompt, request.truncate)
                worker.on_loop.spend(time.perf_counter() - start)
                check_tokens(encoded.tokens, max_tokens)
                return encoded
            steps = self.tokenizer.encoding(texts, prompt, request.truncate, max_tokens)
            task = Task(self.name, units, steps)
        return await presence.wait(worker.encode(task, presence.left(), hold))

    def _check_token_ids_accepted(self) -> None:
        if not self.spec.accept_token_ids:
            raise RequestError(
                "token_ids_not_accepted",
                "input holds token ids, which may be another tokenizer's; send strings "
                "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
                "input",
            )

    def check_dimensions(self, dimensions: int | None) -> None:
        """RequestError where vectors of that many components are not this model's."""
        own = self.manifest.dimension
        if dimensions is None or dimensions == own:
            return
        if self.manifest.matryoshka and dimensions <= own:
            return
        accepted = f"1 to {own}" if self.manifest.matryoshka else f"only {own}"
        raise RequestError(
            "dimensions_not_supported",
            f"dimensions is {dimensions}; {self.name} accepts {accepted}",
            "dimensions",
        )

    def _no_prompt(self, param: str, found: str) -> RequestError:
        known = ", ".join(self.manifest.prompts) or "none"
        return RequestError(
            "prompt_not_found",
            f"{param} is {found[:64]!r}; prompts of {self.name}: {known}",
            param,
        )


async def _rows(job: Job, worker: Worker, presence: Presence) -> Floats:
    """Wait for the rows, for as long as somebody waits for the answer."""
    try:
        presence.watch(functools.partial(worker.fail, job))
        return await job.future
    finally:
        if not job.future.done():
            worker.cancel(job)
