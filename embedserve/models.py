"""Model (encode -> embed -> finish) and ModelRegistry (load, warm, check, drain)."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from embedserve import artifact, finishing
from embedserve.artifact import Golden, Manifest
from embedserve.backend import OnnxBackend
from embedserve.batching import Shape, pad
from embedserve.config import Alias, ModelSpec
from embedserve.errors import ClientLeftError, Exit, RequestError, StartupError
from embedserve.metrics import Metrics
from embedserve.pooling import Floats
from embedserve.schemas import EmbeddingsRequest
from embedserve.tokenization import Encoded, Tokenizer, Tokens
from embedserve.worker import Engine, Job, Worker

log = logging.getLogger(__name__)

# sentence-transformers' encode_query and encode_document look for these prompts, in this order.
INPUT_TYPES: Mapping[str, tuple[str, ...]] = {
    "query": ("query", "search_query"),
    "document": ("document", "passage", "corpus", "search_document"),
}


# What the tokenizer's thread does in one go: about 50 ms.
SLICE_CHARACTERS = 100_000


@dataclass(frozen=True, slots=True)
class Embedded:
    """A request's vectors (n, dim) float32, and what it took (seconds)."""

    rows: Floats
    tokens: int
    truncated: list[int]
    tokenize: float
    queue: float
    inference: float


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
        self.engine = Engine(
            name=spec.name,
            backend=backend,
            # Attention's share of a transformer layer's work is t / (6 h): 2 * t * h products of
            # scores and values per token against 12 * h * h of the projections.
            shape=Shape(spec.name, 6.0 * manifest.hidden_size, manifest.masked_up_to),
            dimension=manifest.dimension,
            pad_token_id=manifest.pad_token_id,
            padding_side=manifest.padding_side,
        )

    async def embed(
        self,
        request: EmbeddingsRequest,
        worker: Worker,
        max_tokens: int,
        left: Callable[[], Coroutine[None, None, None]],
        deadline: float,
    ) -> Embedded:
        """Tokenize, queue, wait for the rows, cut to `dimensions`; RequestError when refused.

        `left` returns when the client has gone: ClientLeftError is raised. `deadline` is a time of
        the loop's clock: then 504. Either way what still waits of the request is never computed.
        """
        start = time.perf_counter()
        self.check_dimensions(request.dimensions)
        presence = Presence(left, deadline)
        try:
            encoded = await self._encode(request, worker, presence)
            if encoded.tokens > max_tokens:
                raise RequestError(
                    "too_many_tokens",
                    f"input has {encoded.tokens} tokens; at most {max_tokens} are accepted in one "
                    "request",
                    "input",
                )
            tokenized = time.perf_counter()
            job = worker.submit(self.engine, encoded.sequences)
            rows = await _rows(job, worker, presence)
        finally:
            presence.end()
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
        )

    def tokens(self, request: EmbeddingsRequest) -> list[Tokens]:
        """What the model sees of each text; in a thread."""
        if request.texts is None:
            raise RequestError(
                "invalid_type", "input holds token ids; strings are accepted", "input"
            )
        return self.tokenizer.tokens(request.texts, self.prompt(request), request.truncate)

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
        self, request: EmbeddingsRequest, worker: Worker, presence: Presence
    ) -> Encoded:
        """Tokenize in slices: others come between, and nothing more is done for who has left."""
        if request.texts is None:
            return await worker.encode(self._token_ids(request.token_ids or []))
        prompt, encode = self.prompt(request), self.tokenizer.encode
        parts = []
        for first, texts in slices(request.texts):
            work = functools.partial(encode, texts, prompt, request.truncate, first)
            parts.append(await worker.encode(work))
            presence.check()
        if len(parts) == 1:
            return parts[0]
        return Encoded(
            [ids for part in parts for ids in part.sequences],
            [total for part in parts for total in part.totals],
        )

    def _token_ids(self, ids: list[list[int]]) -> Callable[[], Encoded]:
        if not self.spec.accept_token_ids:
            raise RequestError(
                "token_ids_not_accepted",
                "input holds token ids, which may be another tokenizer's; send strings "
                "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
                "input",
            )
        return lambda: self.tokenizer.check_token_ids(ids)

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


class Presence:
    """Whether somebody still waits for an answer: the client, within its deadline.

    Owned by the event loop; `end` must be called.
    """

    def __init__(self, left: Callable[[], Coroutine[None, None, None]], deadline: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._left = self._loop.create_task(left())
        self._deadline = deadline
        self._timer: asyncio.TimerHandle | None = None

    def check(self) -> None:
        """ClientLeftError or 504 when nobody waits any more."""
        if self._left.done():
            raise ClientLeftError
        if self._loop.time() > self._deadline:
            raise _late()

    def watch(self, fail: Callable[[Exception], None]) -> None:
        """Call `fail` once when the client leaves or the deadline passes."""
        self.check()
        self._left.add_done_callback(lambda _: fail(ClientLeftError()))
        self._timer = self._loop.call_at(self._deadline, lambda: fail(_late()))

    def end(self) -> None:
        """Watch no longer."""
        self._left.cancel()
        if self._timer is not None:
            self._timer.cancel()


async def _rows(job: Job, worker: Worker, presence: Presence) -> Floats:
    """Wait for the rows, for as long as somebody waits for the answer."""
    try:
        presence.watch(functools.partial(worker.fail, job))
        return await job.future
    finally:
        if not job.future.done():
            worker.cancel(job)


def _late() -> RequestError:
    return RequestError("deadline_exceeded", "the request's deadline passed before its answer")


def slices(texts: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Cut a request into parts of about SLICE_CHARACTERS, each with its first text's index."""
    first = size = 0
    for i, text in enumerate(texts):
        size += len(text)
        if size >= SLICE_CHARACTERS:
            yield first, texts[first : i + 1]
            first, size = i + 1, 0
    if first < len(texts):
        yield first, texts[first:]


class ModelRegistry:
    """The models that are served, in the order of models.toml, and their aliases after them."""

    def __init__(self, models: Iterable[Model], aliases: Iterable[Alias] = ()) -> None:
        self._models = {model.name: model for model in models}
        self._aliases = {a.name: a for a in aliases if a.model in self._models}
        for alias in self._aliases.values():
            _check_alias(alias, self._models[alias.model])

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def engines(self) -> dict[str, Engine]:
        """Name -> engine, for the Worker."""
        return {model.name: model.engine for model in self}

    def names(self) -> list[str]:
        """Names of models, then of aliases."""
        return [*self._models, *self._aliases]

    def find(self, name: str | None) -> tuple[Model, Alias | None]:
        """Return the model, or the alias and its model; without a name the only model, else 400.

        A name that is neither is a 404.
        """
        known = ", ".join(self.names())
        if name is None:
            if len(self._models) == 1:
                return next(iter(self)), None
            raise RequestError("missing_parameter", f"model is missing; one of {known}", "model")
        alias = self._aliases.get(name)
        model = self._models.get(alias.model if alias else name)
        if model is None:
            raise RequestError(
                "model_not_found", f"model {name[:128]!r} does not exist; one of {known}", "model"
            )
        return model, alias

    def resolve(self, request: EmbeddingsRequest) -> tuple[Model, EmbeddingsRequest]:
        """Return the request's model, and the request with what its alias fixes."""
        model, alias = self.find(request.model)
        return model, request if alias is None else _with_alias(request, alias)


def _with_alias(request: EmbeddingsRequest, alias: Alias) -> EmbeddingsRequest:
    if alias.prompt_name is not None:
        if request.input_type is not None or request.prompt_name not in (None, alias.prompt_name):
            param = "input_type" if request.input_type is not None else "prompt_name"
            raise RequestError(
                "invalid_value", f"{alias.name} fixes the prompt {alias.prompt_name!r}", param
            )
        request = replace(request, prompt_name=alias.prompt_name)
    if alias.dimensions is not None:
        if request.dimensions not in (None, alias.dimensions):
            raise RequestError(
                "invalid_value",
                f"{alias.name} fixes dimensions to {alias.dimensions}",
                "dimensions",
            )
        request = replace(request, dimensions=alias.dimensions)
    return request


def _check_alias(alias: Alias, model: Model) -> None:
    """An alias that its model cannot answer is found at start, not at the first request."""
    try:
        model.check_dimensions(alias.dimensions)
        model.prompt(EmbeddingsRequest(None, None, None, prompt_name=alias.prompt_name))
    except RequestError as error:
        raise StartupError(f"models.toml: [aliases.{alias.name}] {error.message}") from error


def load(
    specs: Iterable[ModelSpec], aliases: Iterable[Alias], artifacts: Path, provider: str
) -> ModelRegistry:
    """Load each model's artifact, check digests and golden vectors. StartupError names the file."""
    models = [load_model(spec, artifacts / spec.name, provider) for spec in specs]
    return ModelRegistry(models, aliases)


def load_model(spec: ModelSpec, directory: Path, provider: str) -> Model:
    """Load one artifact and prove it on the provider that will serve it."""
    start = time.perf_counter()
    manifest = artifact.read(directory)
    artifact.check_files(directory, manifest)
    model = Model(
        spec, manifest, Tokenizer(directory, manifest), OnnxBackend(directory, manifest, provider)
    )
    loaded = time.perf_counter()
    difference = check_golden(model, artifact.read_golden(directory), directory)
    log.info(
        "model %s: loaded in %.2f s, golden vectors within %.1e in %.2f s, fingerprint %.12s",
        spec.name,
        loaded - start,
        difference,
        time.perf_counter() - loaded,
        manifest.fingerprint,
    )
    return model


def check_golden(model: Model, golden: Golden, directory: Path) -> float:
    """Embed the golden texts and return the largest difference; StartupError past tolerance."""
    ids = model.tokenizer.encode(golden.texts).sequences
    for i, expected in enumerate(golden.token_ids):
        if ids[i].tolist() != list(expected):
            raise StartupError(
                f"{directory / artifact.GOLDEN}: this tokenizer gives other token ids than "
                f"sentence-transformers for text {i}; export again with this version of tokenizers"
            )
    engine = model.engine
    rows = [
        engine.backend.embed(pad([row], engine.pad_token_id, engine.padding_side))[0] for row in ids
    ]
    difference = float(np.abs(np.stack(rows) - golden.vectors).max())
    tolerance = artifact.TOLERANCES[model.manifest.precision]
    if not difference <= tolerance:  # a NaN is no pass
        raise StartupError(
            f"{directory}: golden vectors differ by {difference:.1e} on {model.provider}, at most "
            f"{tolerance:.0e} is accepted; export again, or use another provider"
        )
    return difference


def choose(
    models: Mapping[str, ModelSpec], names: Iterable[str], artifacts: Path, skip_missing: bool
) -> list[ModelSpec]:
    """Return the models to serve: those named, else all; or all that have an artifact."""
    names = list(names)
    for name in names:
        if name not in models:
            raise StartupError(
                f"--model {name}: not in models.toml; one of {', '.join(models)}", Exit.USAGE
            )
    chosen = [spec for name, spec in models.items() if not names or name in names]
    missing = [s.name for s in chosen if not (artifacts / s.name / artifact.MANIFEST).exists()]
    if missing and (not skip_missing or names or len(missing) == len(chosen)):
        raise StartupError(
            f"{artifacts / missing[0] / artifact.MANIFEST}: no such file; make it with "
            f"`python -m export {missing[0]}`, or serve fewer models with --model NAME or "
            "--skip-missing",
            Exit.NOINPUT,
        )
    for name in missing:
        log.warning("model %s: not served, it has no artifact in %s", name, artifacts)
    return [spec for spec in chosen if spec.name not in missing]


def register_metrics(registry: ModelRegistry, worker: Worker, metrics: Metrics) -> None:
    """Make every series of every model."""
    for model in registry:
        manifest, shape = model.manifest, model.engine.shape
        metrics.add_model(
            model.name,
            depth=functools.partial(worker.queue.depth, shape),
            fingerprint=manifest.fingerprint,
            dimension=str(manifest.dimension),
            max_tokens=str(manifest.max_tokens),
            precision=manifest.precision,
            provider=model.provider,
        )


def describe(model: Model, alias: Alias | None) -> dict[str, object]:
    """The model object of GET models/{id}: what a client needs to know."""
    manifest = model.manifest
    fixed = {k: v for k, v in asdict(alias).items() if k != "name"} if alias else None
    return {
        "alias": fixed,
        "dimension": manifest.dimension,
        "dimensions": list(manifest.matryoshka) or [manifest.dimension],
        "max_tokens": manifest.max_tokens,
        "pooling": list(manifest.pooling),
        "normalized": manifest.normalized,
        "prompts": dict(manifest.prompts),
        "default_prompt_name": manifest.default_prompt_name,
        "precision": manifest.precision,
        "provider": model.provider,
        "fingerprint": manifest.fingerprint,
        "source": {"repository": manifest.repository, "revision": manifest.revision},
        "parity": asdict(manifest.parity) if manifest.parity else None,
    }
