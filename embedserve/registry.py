"""The models that are served: choose, load, check, name, describe."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from embedserve import artifact, parallelism, process
from embedserve.artifact import Golden
from embedserve.backend import PROVIDERS, OnnxBackend
from embedserve.config import Alias, ModelSpec
from embedserve.encoder import Encoder
from embedserve.errors import Exit, RequestError, StartupError
from embedserve.metrics import Metrics
from embedserve.models import Model
from embedserve.schemas import EmbeddingsRequest
from embedserve.tokenization import Tokenizer
from embedserve.worker import Worker

log = logging.getLogger(__name__)


class ModelRegistry:
    """The models that are served, in the order of models.toml, and their aliases after them.

    `names` are those of the whole service, where other processes serve some of its models.
    """

    def __init__(
        self,
        models: Iterable[Model],
        aliases: Iterable[Alias] = (),
        names: Iterable[str] | None = None,
    ) -> None:
        self._models = {model.name: model for model in models}
        self._aliases = {a.name: a for a in aliases if a.model in self._models}
        own = [*self._models, *self._aliases]
        self._names = own if names is None else list(names)
        self._is_only = len(self._models) == 1 and set(self._names) == set(own)
        for alias in self._aliases.values():
            _check_alias(alias, self._models[alias.model])

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def engines(self) -> dict[str, Encoder]:
        """Name -> engine, for the Worker."""
        return {model.name: model.engine for model in self}

    def names(self) -> list[str]:
        """Names of models, then of aliases."""
        return self._names

    def find(self, name: str | None) -> tuple[Model, Alias | None]:
        """Return the model, or the alias and its model; without a name the only model, else 400.

        A name that is neither is a 404.
        """
        known = ", ".join(self.names())
        if name is None:
            if self._is_only:
                return next(iter(self)), None
            raise RequestError("missing_parameter", f"model is missing; one of {known}", "model")
        alias = self._aliases.get(name)
        model = self._models.get(alias.model if alias else name)
        if model is None:
            raise RequestError(
                "model_not_found", f"model {name[:128]!r} does not exist; one of {known}", "model"
            )
        return model, alias

    @property
    def takes_ids(self) -> bool:
        """Whether any model accepts token ids."""
        return any(model.spec.accept_token_ids for model in self)

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
    specs: Iterable[ModelSpec], aliases: Iterable[Alias], artifacts: Path, provider: str, cores: int
) -> ModelRegistry:
    """Load each model's artifact, check digests and golden vectors. StartupError names the file."""
    threads = parallelism.tokenizing(PROVIDERS[provider], cores)
    models = [load_model(s, artifacts / s.name, provider, cores, threads)[0] for s in specs]
    return ModelRegistry(models, aliases)


def load_model(
    spec: ModelSpec, directory: Path, provider: str, cores: int = 1, tokenizing: int = 1
) -> tuple[Model, float]:
    """Load one artifact and prove it on the provider that will serve it.

    A lone text may use `cores`; `tokenizing` threads share a batch of texts. Returns the model and
    the largest difference from its golden vectors.
    """
    start = time.perf_counter()
    manifest = artifact.read(directory)
    artifact.check_small_files(directory, manifest)
    process.tokenize_with(tokenizing)
    with ThreadPoolExecutor(2) as threads:  # what takes longest, side by side: 75 of 400 ms
        weights = threads.submit(artifact.check_weights, directory, manifest)
        opening = threads.submit(OnnxBackend, directory, manifest, provider, cores)
        try:
            tokenizer = Tokenizer(directory, manifest, tokenizing)
            tokenizer.check_vocabulary()
            backend = opening.result()
        finally:
            weights.result()  # what is wrong with a file is said first
        model = Model(spec, manifest, tokenizer, backend)
    loaded = time.perf_counter()
    golden = artifact.read_golden(directory)
    difference, rate = check_golden(model, golden, directory)
    model.engine = replace(model.engine, rate=rate)
    log.info(
        "model %s: loaded in %.2f s, golden vectors within %.1e in %.2f s, fingerprint %.12s",
        spec.name,
        loaded - start,
        difference,
        time.perf_counter() - loaded,
        manifest.fingerprint,
    )
    return model, difference


def check_golden(model: Model, golden: Golden, directory: Path) -> tuple[float, float]:
    """Embed the golden texts; StartupError when a vector differs by more than the tolerance.

    Returns the largest difference, and the rate of one lane in cost units a second.
    """
    if golden.vectors.shape[1] != model.manifest.dimension:
        raise StartupError(
            f"{directory / artifact.GOLDEN}: has vectors of {golden.vectors.shape[1]}, the "
            f"manifest's dimension is {model.manifest.dimension}"
        )
    try:
        return _compared(model, golden, directory)
    except RequestError as error:  # the tokenizer's, for a text that it has no token of
        raise StartupError(
            f"{directory / artifact.GOLDEN}: cannot be embedded: {error.message}"
        ) from error
    except (StartupError, MemoryError):
        raise
    except Exception as error:  # whatever a pass raises
        raise StartupError(f"{directory / artifact.GOLDEN}: cannot be embedded: {error}") from error


def _compared(model: Model, golden: Golden, directory: Path) -> tuple[float, float]:
    """Embed the golden texts and compare; see check_golden."""
    ids = model.tokenizer.encode(golden.texts).sequences
    for i, expected in enumerate(golden.token_ids):
        if ids[i].tolist() != list(expected):
            raise StartupError(
                f"{directory / artifact.GOLDEN}: this tokenizer gives other token ids than "
                f"sentence-transformers for text {i}; export again with this version of tokenizers"
            )
    engine = model.engine
    start = time.perf_counter()
    rows = [engine.run([row])[0] for row in ids]
    rate = sum(engine.shape.cost(len(row)) for row in ids) / (time.perf_counter() - start)
    # The session for lone texts computes the same bits: once proves it, and warms it up.
    rows.append(engine.run(ids[:1], alone=True)[0])
    vectors = np.concatenate([golden.vectors, golden.vectors[:1]])
    difference = float(np.abs(np.stack(rows) - vectors).max())
    tolerance = artifact.TOLERANCES[model.manifest.precision]
    if not difference <= tolerance:  # a NaN is no pass
        raise StartupError(
            f"{directory}: golden vectors differ by {difference:.1e} on {model.provider}, at most "
            f"{tolerance:.0e} is accepted; export again, or use another provider"
        )
    return difference, rate


def choose(
    models: Mapping[str, ModelSpec], names: Iterable[str], artifacts: Path, skip_missing: bool
) -> list[ModelSpec]:
    """Return the models to serve: those named, else all; or all that have an artifact.

    An optional model that has none is left out, unless it is named.
    """
    names = list(names)
    for name in names:
        if name not in models:
            raise StartupError(
                f"--model {name}: not in models.toml; one of {', '.join(models)}", Exit.USAGE
            )
    chosen = [spec for name, spec in models.items() if not names or name in names]
    present = [s for s in chosen if artifact.exists(artifacts / s.name)]
    missing = [s for s in chosen if s not in present]
    required = [s for s in missing if names or not s.optional]
    if not present or (required and (names or not skip_missing)):
        name = (required or missing)[0].name
        raise StartupError(
            f"{artifacts / name / artifact.MANIFEST}: no such file; make it with "
            f"`python -m export {name}`, or serve fewer models with --model NAME or "
            "--skip-missing",
            Exit.NOINPUT,
        )
    for spec in required:
        log.warning("model %s: not served, it has no artifact in %s", spec.name, artifacts)
    return present


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
